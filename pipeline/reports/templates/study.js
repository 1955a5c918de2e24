// Charts, the order of the table, and the buttons that copy a setting. The page works without: pictures, best first.
for (const figure of document.querySelectorAll("[data-figure]")) {
  const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
  Plotly.newPlot(figure.appendChild(document.createElement("div")), data, layout, { responsive: !layout.width, displaylogo: false });
}
const body = document.querySelector("#trials tbody");
document.querySelectorAll("#trials thead th").forEach((head, column) => {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of document.querySelectorAll("#trials thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    body.append(...[...body.rows].sort((a, b) => {
      if (!key(a) || !key(b)) return !key(a) - !key(b); // trials that lack the value go last
      const order = isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
      return down ? -order : order;
    }));
  });
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
  });
}
