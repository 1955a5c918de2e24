// Script of the page of `agman serve`: sends a picture and attributes, and shows the hits. Text is set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const words = (name) => name.replaceAll("_", " ");
let query = null; // {file, address} of an upload, or {row, of, picture} of a picture of the gallery
let hits = [];
let asked = 0; // number of the newest request; answers to older ones are dropped
let plain = false; // whether the user has chosen to see no attention

function chosen() {
  return [...document.querySelectorAll("[name=attributes]:checked")].map((box) => box.value);
}

function values(state) {
  return [...document.querySelectorAll(`.value[data-state=${state}]`)].map((chip) => chip.dataset.value);
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Error("The service does not answer.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(body.error || (response.status === 503 ? "The service is busy; try again." : `Error ${response.status}`));
  }
  return body;
}

function form(attributes) {
  const data = new FormData();
  data.append("image", query.file);
  for (const name of attributes) data.append("attributes", name);
  return { method: "POST", body: data };
}

function pick(file) {
  if (query && query.file) URL.revokeObjectURL(query.address);
  query = { file, address: URL.createObjectURL(file) };
  show(query.address, `Query picture ${file.name || "from the clipboard"}`);
  search();
}

function show(address, text) {
  $("preview").src = address;
  $("preview").alt = text;
  $("preview").hidden = false;
}

async function search() {
  const attributes = query ? chosen() : [];
  const asks = [...values("wanted").map((value) => ["values", value]), ...values("excluded").map((value) => ["excluded", value])];
  const mine = ++asked;
  if (!query && !asks.length) return say("Choose a picture or a value first.", true);
  if (query && !attributes.length) return say("Choose at least one attribute.", true);
  say("Searching …");
  try {
    asks.push(...attributes.map((name) => ["attributes", name]), ["top", "10"]);
    if ($("where") && $("where").value.trim()) asks.push(["where", $("where").value]);
    if (query && !query.file) asks.push(["of", query.of]);
    const upload = { method: "POST", body: new FormData() };
    for (const [key, value] of asks) upload.body.append(key, value);
    if (query && query.file) upload.body.append("image", query.file);
    const found = query && !query.file
      ? await answer(fetch(`similar/${query.row}?${new URLSearchParams(asks)}`))
      : await answer(fetch("search", upload));
    if (mine !== asked) return;
    hits = found.hits;
    say(`${hits.length} ${hits.length === 1 ? "picture" : "pictures"}, best first.`);
    heatChoices(attributes);
    draw(attributes);
    await heat();
  } catch (error) {
    if (mine !== asked) return;
    hits = [];
    draw(attributes);
    say(error.message, true);
  }
}

function heatChoices(attributes) {
  const before = $("heat").value;
  $("heat").replaceChildren(new Option("none", ""), ...attributes.map((name) => new Option(words(name), name)));
  $("heat").value = plain ? "" : attributes.includes(before) ? before : attributes[0] || "";
}

function clear() {
  asked += 1; // the answer to a search under way is dropped
  hits = [];
  heatChoices([]);
  draw([]);
  say("");
}

function draw(attributes) {
  $("hits-title").hidden = !hits.length;
  $("hits").replaceChildren(...hits.map((hit, place) => card(hit, place + 1, attributes)));
}

function card(hit, rank, attributes) {
  const item = document.createElement("li");
  item.className = "card hit";
  item.dataset.row = hit.row;
  item.dataset.picture = hit.picture;
  const button = document.createElement("button");
  button.type = "button";
  button.title = "Search with this picture";
  const picture = document.createElement("img");
  picture.src = hit.picture;
  picture.alt = `Rank ${rank}: ${hit.image}`;
  button.append(picture);
  button.addEventListener("click", () => {
    if (query && query.file) URL.revokeObjectURL(query.address);
    query = { row: hit.row, of: hit.of, picture: hit.picture };
    show(hit.picture, `Query picture ${hit.image}`);
    scrollTo({ top: 0 });
    search();
  });
  const text = document.createElement("div");
  const score = document.createElement("strong");
  score.textContent = `${rank}. ${hit.score.toFixed(3)}`;
  const name = document.createElement("p");
  name.className = "name";
  name.textContent = hit.image;
  text.append(score, name);
  const labels = Object.values(hit.labels);
  if (labels.length) {
    const known = document.createElement("p");
    known.className = "soft labels";
    known.textContent = labels.join(" · ");
    text.append(known);
  }
  const named = hit.values.map((one) => [`${one.excluded ? "not " : ""}${words(one.attribute)}: ${one.value}`, one.score]);
  const parts = [...Object.entries(hit.cosines).map(([name, cosine]) => [words(name), cosine]), ...named];
  if (parts.length > 1) text.append(table(parts.map(([part, score]) => [part, score.toFixed(3)])));
  const wanted = hit.values.filter((one) => !one.excluded).map((one) => one.attribute);
  const others = Object.entries(hit.tags).filter(([attribute]) => !wanted.includes(attribute));
  const share = (tag) => (tag.probability === null ? "" : `${(100 * tag.probability).toFixed(0)} %`);
  const tags = others.map(([attribute, tag]) => [`${words(attribute)}: ${tag.value}`, share(tag)]);
  if (tags.length) {
    const list = table(tags);
    list.className = "tags";
    list.ariaLabel = "Values that the model names";
    text.append(list);
  }
  item.append(button, text);
  return item;
}

function table(rows) {
  const list = document.createElement("dl");
  for (const [key, value] of rows) {
    const term = document.createElement("dt");
    term.textContent = key;
    const detail = document.createElement("dd");
    detail.textContent = value;
    list.append(term, detail);
  }
  return list;
}

function heated(picture, attribute) {
  return attribute ? `${picture.replace("pictures/", "attention/")}&attribute=${encodeURIComponent(attribute)}` : picture;
}

async function heat() {
  const attribute = $("heat").value;
  const mine = asked;
  for (const item of document.querySelectorAll(".hit")) {
    item.querySelector("img").src = heated(item.dataset.picture, attribute);
  }
  if (!query) return;
  if (!query.file) {
    $("preview").src = heated(query.picture, attribute);
    return;
  }
  try {
    const address = attribute
      ? (await answer(fetch("attention", form([attribute])))).attention[attribute]
      : query.address;
    if (mine === asked && $("heat").value === attribute) $("preview").src = address;
  } catch (error) {
    say(error.message, true);
  }
}

$("file").addEventListener("change", (event) => event.target.files[0] && pick(event.target.files[0]));
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("heat").addEventListener("change", () => {
  plain = !$("heat").value;
  heat();
});
for (const box of document.querySelectorAll("[name=attributes]")) box.addEventListener("change", () => query && search());
function set(chip, state) {
  chip.dataset.state = state;
  chip.setAttribute("aria-pressed", { any: "false", wanted: "true", excluded: "mixed" }[state]);
  chip.setAttribute("aria-label", state === "excluded" ? `not ${chip.dataset.name}` : chip.dataset.name);
}

for (const chip of document.querySelectorAll(".value")) {
  chip.addEventListener("click", () => {
    const state = { any: "wanted", wanted: "excluded", excluded: "any" }[chip.dataset.state];
    if (state === "wanted") {
      for (const other of chip.parentElement.querySelectorAll("[data-state=wanted]")) set(other, "any"); // one of an attribute
    }
    set(chip, state);
    if (query || values("wanted").length || values("excluded").length) search();
    else clear();
  });
}
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) pick(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => event.clipboardData.files[0] && pick(event.clipboardData.files[0]));
