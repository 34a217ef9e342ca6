// Code to read and copy.

function render({ model, el }) {
  const root = frame(el, "Python code");
  const code = element("code"), copy = element("button", { type: "button" }, "Copy");
  const show = () => { code.textContent = model.get("code"); };
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(model.get("code"));
      copy.textContent = "Copied";
    } catch { // no clipboard on insecure pages: select it, so that Ctrl-C does the rest
      getSelection().selectAllChildren(code);
      copy.textContent = "Selected; press Ctrl-C";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  });
  root.append(element("pre", { class: "a-code", tabindex: "0", "aria-label": "Python code" }, code), copy);
  model.on("change:code", show);
  show();
  return () => model.off("change:code", show);
}

export default { render };
