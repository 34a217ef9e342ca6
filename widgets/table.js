// A table of plain rows: sorted by a click on a heading, chosen by check boxes, with buttons that tell Python what was pressed.

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "itl-scroll";
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  el.append(root);
  let sort = null;

  function make(tag, attributes = {}, text) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== false) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function ordered(rows) {
    if (!sort) return rows;
    const value = (row) => row.sort?.[sort.key] ?? row.cells[sort.key] ?? "";
    return [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return sort.down ? -order : order;
    });
  }

  function choose(id, on) {
    const chosen = model.get("selected").filter((other) => other !== id);
    model.set("selected", on ? [...chosen, id] : chosen);
    model.save_changes();
  }

  function heading(column) {
    const cell = make("th", { scope: "col", class: column.number ? "num" : undefined });
    if (!column.label) return cell;
    const isSorted = sort?.key === column.key;
    if (isSorted) cell.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
    const button = make("button", { type: "button", title: "Sort" }, column.label + (isSorted ? (sort.down ? " ↓" : " ↑") : ""));
    button.addEventListener("click", () => {
      sort = isSorted ? (sort.down ? { key: column.key, down: false } : null) : { key: column.key, down: true };
      draw();
    });
    cell.append(button);
    return cell;
  }

  function line(row, columns, selectable) {
    const isChosen = model.get("selected").includes(row.id);
    const tr = make("tr", { "aria-selected": selectable ? String(isChosen) : undefined });
    if (selectable) {
      const box = make("input", { type: "checkbox", "aria-label": `Choose ${row.name ?? row.id}` });
      box.checked = isChosen;
      box.addEventListener("change", () => choose(row.id, box.checked));
      const cell = make("td");
      cell.append(box);
      tr.append(cell);
    }
    for (const column of columns) {
      const classes = [column.number && "num", column.wide && "wide"].filter(Boolean).join(" ");
      const cell = make("td", { class: classes || undefined }, String(row.cells[column.key] ?? ""));
      if (row.titles?.[column.key]) cell.title = row.titles[column.key];
      tr.append(cell);
    }
    const actions = model.get("actions");
    if (actions.length) {
      const cell = make("td", { class: "itl-acts" });
      for (const action of actions) {
        if (row.actions && !row.actions.includes(action.name)) continue;
        const button = make("button", { type: "button", "aria-label": `${action.label} ${row.name ?? row.id}` }, action.label);
        button.addEventListener("click", () => model.send({ type: "action", action: action.name, id: row.id }));
        cell.append(button);
      }
      tr.append(cell);
    }
    return tr;
  }

  function draw() {
    const columns = model.get("columns"), rows = model.get("rows"), selectable = model.get("selectable");
    const held = root.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    const table = make("table", { class: "itl-data" });
    table.append(make("caption", {}, rows.length ? model.get("caption") : model.get("empty")));
    if (rows.length) {
      const head = make("tr");
      if (selectable) head.append(make("th", { scope: "col", "aria-label": "chosen" }));
      head.append(...columns.map(heading));
      if (model.get("actions").length) head.append(make("th", { scope: "col", "aria-label": "actions" }));
      const top = make("thead"), body = make("tbody");
      top.append(head);
      body.append(...ordered(rows).map((row) => line(row, columns, selectable)));
      table.append(top, body);
    }
    root.replaceChildren(table);
    if (held) [...root.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === held)?.focus();
  }

  const names = ["rows", "selected", "columns", "caption", "empty"].map((name) => `change:${name}`);
  for (const name of names) model.on(name, draw);
  draw();
  return () => { for (const name of names) model.off(name, draw); };
}

export default { render };
