// JupyterLab's one-key shortcuts (a, b, x, 1, 2, 3, ...) reach into outputs: without this, a key pressed on a slider would insert or cut
// cells. They are off while the focus is in one of our widgets; combinations with Ctrl, Alt or Cmd, and Shift-Enter, work as everywhere.
if (!window.indexttsKeys) {
  window.indexttsKeys = true;
  window.addEventListener("keydown", (event) => { // on window and early: JupyterLab listens on the document, before its target does
    if (!event.target.closest?.(".itl-panel, .itl-audio")) return;
    const combined = event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter");
    event.target.toggleAttribute("data-lm-suppress-shortcuts", !combined);
  }, true);
}
