// One Plotly figure in the page's colours. Plotly itself comes from the kernel, once a page, so nothing is fetched from elsewhere.

const SEEN_EVERY_MS = 4000;

/** Plotly, from this page if it is here already, else through `model`, whose kernel side answers with a widget that carries it. */
function plotly(model) {
  if (globalThis.Plotly?.react) return Promise.resolve(globalThis.Plotly);
  const shared = (globalThis.__itlPlotly ??= { promise: null });
  shared.promise ??= new Promise((resolve, reject) => {
    const giveUp = setTimeout(() => { shared.promise = null; reject(new Error("the kernel does not answer")); }, 30000);
    const answer = async (message) => {
      if (message?.type !== "library") return;
      model.off("msg:custom", answer);
      try {
        const carrier = await model.widget_manager.get_model(message.id);
        const packed = new Blob([carrier.get("packed")]).stream().pipeThrough(new DecompressionStream("gzip"));
        const source = await new Response(packed).text();
        // A module cannot be mistaken for AMD or CommonJS, whatever the page has defined.
        const url = URL.createObjectURL(new Blob(["const module = undefined, define = undefined;\n", source], { type: "text/javascript" }));
        await import(url);
        URL.revokeObjectURL(url);
        model.send({ type: "library loaded" });
        resolve(globalThis.Plotly);
      } catch (error) {
        shared.promise = null;
        reject(error);
      } finally {
        clearTimeout(giveUp);
      }
    };
    model.on("msg:custom", answer);
    model.send({ type: "library" });
  });
  return shared.promise;
}

/** `layout` with the colours of the text around it, on axes and legend alike. */
function themed(layout, ink) {
  const [r, g, b] = (ink.match(/[\d.]+/g) ?? [128, 128, 128]).map(Number);
  const at = (alpha) => `rgba(${r},${g},${b},${alpha})`;
  const result = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true };
  result.font = { size: 12, ...layout.font, color: at(0.85), family: "var(--jp-ui-font-family, system-ui, sans-serif)" };
  for (const key of Object.keys(layout)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    result[key] = { gridcolor: at(0.14), zerolinecolor: at(0.3), linecolor: at(0.3), automargin: true, ...layout[key] };
  }
  result.modebar = { bgcolor: "rgba(0,0,0,0)", color: at(0.4), activecolor: at(0.85) };
  result.hoverlabel = { align: "left", ...layout.hoverlabel };
  return result;
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "itl-chart";
  root.setAttribute("role", "img");
  const plot = document.createElement("div");
  const note = document.createElement("div");
  note.className = "itl-hint";
  root.append(plot, note);
  el.append(root);
  let visible = false, drawn = false, waiting = false, seenAt = 0, closed = false, width = 0;

  const config = { displaylogo: false, responsive: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

  function label() {
    const { layout = {} } = model.get("figure");
    root.setAttribute("aria-label", layout.meta?.words ?? "chart");
    plot.style.minHeight = `${layout.height ?? 300}px`;
  }

  async function draw() {
    const { data, layout } = model.get("figure");
    if (closed || !visible || !root.clientWidth || !data || waiting) return;
    waiting = true;
    try {
      if (!globalThis.Plotly) note.textContent = "Loading charts…";
      const Plotly = await plotly(model);
      if (closed) return;
      width = root.clientWidth;
      // A copy: Plotly notes in the figure what it has worked out.
      const figure = structuredClone(model.get("figure"));
      await Plotly.react(plot, figure.data, { ...themed(figure.layout, getComputedStyle(root).color), width }, config);
      drawn = true;
      note.textContent = "";
      const now = performance.now();
      if (now - seenAt > SEEN_EVERY_MS) { seenAt = now; model.send({ type: "seen" }); }
    } catch (error) {
      note.textContent = `The chart cannot be drawn: ${error.message}. Its data: ${root.getAttribute("aria-label")}`;
    } finally {
      waiting = false;
      if (!closed && visible && layout !== model.get("figure").layout) changed();
    }
  }

  function changed() { label(); draw(); }

  function look(isVisible) {
    if (isVisible === visible) return;
    visible = isVisible;
    model.send({ type: visible ? "shown" : "hidden" });
    if (visible) { seenAt = performance.now(); draw(); }
  }

  const watcher = new IntersectionObserver((entries) => look(entries.at(-1).isIntersecting && !document.hidden));
  const onPage = () => { if (document.hidden) look(false); else { watcher.unobserve(root); watcher.observe(root); } };
  const sizes = new ResizeObserver(() => { if (drawn && Math.abs(root.clientWidth - width) > 1) draw(); else if (!drawn) draw(); });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const themes = new MutationObserver(() => setTimeout(draw, 50));
  watcher.observe(root);
  sizes.observe(root);
  scheme.addEventListener("change", draw);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light", "class", "data-theme"] });
  document.addEventListener("visibilitychange", onPage);
  model.on("change:figure", changed);
  label();
  return () => {
    closed = true;
    look(false);
    watcher.disconnect();
    sizes.disconnect();
    themes.disconnect();
    scheme.removeEventListener("change", draw);
    document.removeEventListener("visibilitychange", onPage);
    model.off("change:figure", changed);
    if (drawn) globalThis.Plotly?.purge(plot);
  };
}

export default { render };
