// A button that asks Python for a file and saves it on the reader's computer.

function render({ model, el }) {
  const button = element("button", { type: "button" }, model.get("label"));
  const root = element("span", { class: "itl-audio itl-bare" }, button);
  const relabel = () => { button.textContent = model.get("label"); button.disabled = model.get("disabled"); button.title = model.get("tooltip"); };
  const arrive = (message, buffers) => {
    if (message.type !== "file") return;
    const url = URL.createObjectURL(new Blob([viewOf(buffers[0])], { type: message.mime }));
    element("a", { href: url, download: message.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };
  button.addEventListener("click", () => model.send({ type: "wanted" }));
  model.on("msg:custom", arrive);
  for (const name of ["label", "disabled", "tooltip"]) model.on(`change:${name}`, relabel);
  relabel();
  el.replaceChildren(root);
  return () => {
    model.off("msg:custom", arrive);
    for (const name of ["label", "disabled", "tooltip"]) model.off(`change:${name}`, relabel);
  };
}

export default { render };
