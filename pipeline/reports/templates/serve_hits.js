// The pictures on the page of `agman serve`: their cards, and the way between them by arrow keys. Text is set as text.

export const words = (name) => name.replaceAll("_", " ");

/** Returns an element with properties and children. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Returns the card of a picture; `rank` counts from 1 and is null for a picture that no search has found. */
export function card(hit, rank, { pick, more }) {
  const picture = element("img", { src: hit.picture, alt: rank ? `Rank ${rank}: ${hit.image}` : hit.image, loading: "lazy" });
  const button = element("button", { type: "button", className: "pick", title: "Search with this picture" }, picture);
  button.addEventListener("click", () => pick(hit));
  const menu = element("button", { type: "button", className: "more", textContent: "More like this in…" });
  menu.setAttribute("popovertarget", "more");
  menu.setAttribute("aria-label", `More like this in…, ${rank ? `rank ${rank}` : hit.image}`);
  menu.addEventListener("click", () => more(hit));
  const item = element("li", { className: "card hit" }, button, text(hit, rank), menu);
  item.dataset.picture = hit.picture;
  return item;
}

/** Returns `count` empty cards, for the time until the first answer. */
export function blanks(count) {
  return Array.from({ length: count }, () => element("li", { className: "card blank", ariaHidden: "true" }));
}

function text(hit, rank) {
  const box = element("div", { className: "text" });
  if (rank) box.append(element("p", {}, element("strong", { textContent: `${rank}. ${hit.score.toFixed(3)}` })));
  box.append(element("p", { className: "name", textContent: hit.image, title: hit.image }));
  const labels = Object.values(hit.labels);
  if (labels.length) box.append(element("p", { className: "labels", textContent: labels.join(" · ") }));
  const parts = rank ? scores(hit) : [];
  if (parts.length > 1) box.append(table(parts, "Parts of the score"));
  const named = tags(hit);
  if (named.length) box.append(table(named, "Values that the model names", "tags"));
  return box;
}

function scores(hit) {
  const cosines = Object.entries(hit.cosines).map(([name, cosine]) => [words(name), cosine.toFixed(3)]);
  const value = (one) => `${one.excluded ? "not " : ""}${words(one.attribute)}: ${one.value}`;
  return [...cosines, ...hit.values.map((one) => [value(one), one.score.toFixed(3)])];
}

function tags(hit) {
  const wanted = (hit.values || []).filter((one) => !one.excluded).map((one) => one.attribute); // shown with the score
  const share = (tag) => (tag.probability === null ? "" : `${(100 * tag.probability).toFixed(0)} %`);
  return Object.entries(hit.tags)
    .filter(([attribute]) => !wanted.includes(attribute) || wanted.length + Object.keys(hit.cosines).length < 2)
    .map(([attribute, tag]) => [`${words(attribute)}: ${tag.value}`, share(tag)]);
}

function table(rows, label, className = "") {
  const cells = rows.flatMap(([key, value]) => [element("dt", { textContent: key }), element("dd", { textContent: value })]);
  return element("dl", { className, ariaLabel: label }, ...cells);
}

/** Lets the arrow keys move the focus from picture to picture of a list. */
export function arrows(list) {
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll(".pick")];
    const here = buttons.indexOf(document.activeElement);
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (here < 0 || !step || !buttons[here + step]) return;
    event.preventDefault();
    buttons[here + step].focus();
  });
}
