// Buttons for a listener's answers, with keys that work anywhere in the panel except where one types; so do the player's keys.

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "itl-votes";
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Your answer");
  el.append(root);
  let panel = null;

  const options = () => model.get("options");
  const vote = (answer) => { if (!model.get("disabled")) model.send({ type: "vote", answer }); };

  function draw() {
    root.replaceChildren(...options().map((option) => {
      const button = document.createElement("button");
      const key = document.createElement("kbd");
      button.type = "button";
      button.disabled = model.get("disabled");
      button.textContent = option.label;
      key.textContent = option.key;
      key.setAttribute("aria-hidden", "true");
      button.append(key);
      button.addEventListener("click", () => vote(option.answer));
      return button;
    }));
  }

  function pressed(event) {
    const typing = event.target.closest?.("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable=true]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const option = options().find((candidate) => candidate.key === event.key.toLowerCase());
    const player = panel.querySelector('[aria-label="Switching player"]');
    const isPlayers = /^[1-9]$/.test(event.key) || (event.key === " " && !event.target.closest("button"));
    if (option) {
      // The next trial brings new buttons; the focus must not go with the old ones, or the next key would go nowhere.
      panel.focus({ preventScroll: true });
      vote(option.answer);
    } else if (isPlayers && player && !player.contains(event.target)) {
      player.dispatchEvent(new KeyboardEvent("keydown", { key: event.key }));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  const attach = () => {
    panel = root.closest(".itl-listening") ?? root;
    panel.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's one-key shortcuts: "b" would add a cell
    panel.tabIndex = -1;
    panel.addEventListener("keydown", pressed);
  };
  const frame = requestAnimationFrame(attach); // the panel is around us only after this
  const names = ["change:options", "change:disabled"];
  for (const name of names) model.on(name, draw);
  draw();
  return () => {
    cancelAnimationFrame(frame);
    panel?.removeEventListener("keydown", pressed);
    for (const name of names) model.off(name, draw);
  };
}

export default { render };
