// Script of the page of `agman serve`. The address after # holds what is searched for; every change of a control writes
// it there and searches, and Back reads it again. Text is set as text, never as HTML.
import { arrows, blanks, card, words } from "./serve_hits.js";

const PAGE = 10;
const MOST = 100; // the service's limit
const SOME = 24; // pictures to begin with
const UNLIKELY = 0.5;

const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const uploads = []; // files of this visit, which an address names by their number
let query = null; // {file, address} of an upload, or a picture of the gallery: {image, row, of, picture}
let top = PAGE;
let seed = 0; // of the pictures to begin with
let heat = null; // attribute of the attention, "" for none; null until the user chooses
let menuOf = null; // picture whose menu is open
let asked = 0; // number of the newest request; answers to older ones are dropped

// Controls and the address

const boxes = () => all("[name=attributes]");
const weightOf = (box) => box.closest(".chip").querySelector(".weight");
const weights = () => boxes().filter((box) => box.checked).map((box) => [box.value, weightOf(box).value || "1"]);
const values = (state) => all(`.value[data-state=${state}]`).map((chip) => chip.dataset.value);
const where = () => ($("where") ? $("where").value.trim() : "");

function asks() {
  const pairs = query ? weights().map(([name, weight]) => ["attributes", weight === "1" ? name : `${name}=${weight}`]) : [];
  for (const value of values("wanted")) pairs.push(["values", value]);
  for (const value of values("excluded")) pairs.push(["excluded", value]);
  if (where()) pairs.push(["where", where()]);
  return pairs;
}

function address() {
  const params = new URLSearchParams(asks());
  if (query && query.image) params.set("image", query.image);
  if (query && query.file) params.set("upload", uploads.indexOf(query.file) + 1);
  if (query && !params.has("attributes")) params.set("attributes", "");
  if (top > PAGE) params.set("top", top);
  if (heat !== null) params.set("heat", heat);
  if (!query && seed) params.set("seed", seed);
  return `#${params}`;
}

function setChip(chip, state) {
  chip.dataset.state = state;
  chip.setAttribute("aria-pressed", { any: "false", wanted: "true", excluded: "mixed" }[state]);
  chip.setAttribute("aria-label", state === "excluded" ? `not ${chip.dataset.name}` : chip.dataset.name);
}

function choose(attributes) {
  const given = new Map(attributes.map((one) => [one.split("=")[0], one.split("=")[1] || "1"]));
  for (const box of boxes()) {
    box.checked = given.has(box.value);
    weightOf(box).value = given.get(box.value) || "1";
  }
  showWeights();
}

function showWeights() {
  const chosen = weights().length;
  for (const box of boxes()) weightOf(box).parentElement.hidden = !box.checked || chosen < 2;
  $("sum").hidden = chosen < 2;
}

/** Sets the controls to what an address says, and searches. */
async function restore() {
  const params = new URLSearchParams(location.hash.slice(1));
  choose(params.has("attributes") ? params.getAll("attributes") : [boxes()[0].value]);
  for (const chip of all(".value")) {
    const is = (key) => params.getAll(key).includes(chip.dataset.value);
    setChip(chip, is("values") ? "wanted" : is("excluded") ? "excluded" : "any");
  }
  for (const one of all(".values")) if (one.querySelector("[data-state=wanted], [data-state=excluded]")) one.open = true;
  if ($("where")) $("where").value = params.get("where") || "";
  top = Math.min(MOST, Math.max(PAGE, Number(params.get("top")) || PAGE));
  seed = Math.max(0, Math.trunc(Number(params.get("seed"))) || 0);
  heat = params.get("heat");
  const file = uploads[params.get("upload") - 1];
  const lost = params.has("upload") && !file;
  await attempt(async (current) => {
    const image = params.get("image");
    let found = null;
    try {
      if (image !== null) [found] = (await answer(ask(`pictures?${new URLSearchParams({ image })}`))).pictures;
    } finally {
      if (current()) show(file ? { file, address: URL.createObjectURL(file) } : found);
    }
  }) && (await search());
  if (lost) tell("This link was made with a picture of its sender, which a link cannot hold. Drop it here again.", { note: true });
}

/** Writes a change of the user into the address, and searches. */
function changed({ keep = false } = {}) {
  if (!keep) top = PAGE;
  if (address() !== (location.hash || "#")) history[keep ? "replaceState" : "pushState"](null, "", address());
  return search();
}

// The query picture

function show(picture) {
  if (query && query.file) URL.revokeObjectURL(query.address);
  query = picture;
  $("preview").hidden = $("under").hidden = !query;
  if (!query) return $("preview").removeAttribute("src");
  $("preview").src = query.file ? query.address : query.picture;
  $("preview").alt = `Query picture ${query.file ? query.file.name || "from the clipboard" : query.image}`;
  $("link").textContent = query.file ? "A link cannot hold your picture." : "";
}

function upload(file) {
  uploads.push(file);
  show({ file, address: URL.createObjectURL(file) });
  changed();
}

function pick(hit, attributes) {
  if (attributes) choose(attributes);
  show(hit);
  $("title").focus({ preventScroll: true }); // the button that was pressed will be gone
  $("results").scrollIntoView();
  changed();
}

// Searching

const ANSWERS = {
  0: "The service does not answer. Is it running?",
  401: "The service needs a key. Load this page again, and enter the key as the password.",
  503: "The service is busy; try again.",
};

// The header says that a script asks: without a valid key, the browser would ask for a password.
const ask = (path, options) => fetch(path, { headers: { "X-Requested-With": "fetch" }, ...options });

async function answer(request) {
  const response = await request.catch(() => ({ status: 0 }));
  const body = response.status ? await response.json().catch(() => ({})) : {};
  if (response.ok) return body;
  const said = body.error && `${body.error[0].toUpperCase()}${body.error.slice(1).replace(/[^.?!]$/, "$&.")}`;
  const text = (response.status !== 401 && said) || ANSWERS[response.status] || `The service failed (${response.status}).`;
  throw Object.assign(new Error(text), { passes: !response.status || response.status === 429 || response.status >= 500 });
}

function fail(error, again = restore) {
  const moved = query && query.of; // its row may be one of a state that is gone: it is found by its name again
  const [label, action] = error.passes === false && !moved ? ["Start again", () => (location.hash = "")] : ["Try again", again];
  tell(error.message, { wrong: true, label, action });
}

/** Runs `action`, and shows that it runs, and its failure; returns whether it has succeeded and is still the newest. */
async function attempt(action) {
  const mine = ++asked;
  const current = () => mine === asked;
  $("results").setAttribute("aria-busy", "true");
  if (!$("hits").children.length) $("hits").replaceChildren(...blanks(PAGE));
  try {
    await action(current);
    if (current()) $("results").setAttribute("aria-busy", "false");
  } catch (error) {
    if (!current()) return false;
    $("results").setAttribute("aria-busy", "false");
    draw([]);
    fail(error);
    return false;
  }
  return current();
}

function search() {
  showWeights();
  const searched = asks();
  const names = searched.map(([key]) => key);
  if (query && !names.includes("attributes")) return stop("Choose at least one attribute.");
  if (!query && !names.includes("values") && !names.includes("excluded")) return begin();
  tell("Searching …");
  return attempt(async (current) => {
    const { hits } = await answer(found([...searched, ["top", top]]));
    if (!current()) return;
    draw(hits, true);
    report(hits);
    await drawHeat();
  });
}

function found(pairs) {
  if (query && !query.file) return ask(`similar/${query.row}?${new URLSearchParams([...pairs, ["of", query.of]])}`);
  return ask("search", { method: "POST", body: form(pairs) });
}

function form(pairs) {
  const body = new FormData();
  for (const [key, value] of pairs) body.append(key, value);
  if (query && query.file) body.append("image", query.file);
  return body;
}

function stop(reason) {
  asked += 1; // the answer to a search under way is dropped
  $("results").setAttribute("aria-busy", "false");
  draw([]);
  tell(reason, { note: true });
}

/** Shows some pictures of the gallery to begin with. */
function begin() {
  tell("Loading …");
  return attempt(async (current) => {
    const { pictures } = await answer(ask(`pictures?${new URLSearchParams({ seed, top: SOME })}`));
    if (!current()) return;
    draw(pictures);
    if (where()) tell("The condition narrows a search; choose a picture or a value too.", { note: true });
    else tell("A click on a picture searches with it.");
  });
}

// Showing

function tell(text, { note = false, wrong = false, label = "", action = null } = {}) {
  $("status").textContent = text;
  $("told").classList.toggle("note", note || wrong);
  $("told").classList.toggle("wrong", wrong);
  $("act").hidden = !label;
  $("act").textContent = label;
  $("act").onclick = action;
}

function draw(pictures, searched = false) {
  $("title").textContent = !pictures.length ? "Results" : searched ? "Found" : "Or begin with one of these";
  $("others").hidden = searched || !pictures.length;
  $("further").hidden = !searched || pictures.length < top || top >= MOST;
  heatChoices(searched ? pictures : []);
  const actions = { pick, more: (hit) => (menuOf = hit) };
  $("hits").replaceChildren(...pictures.map((hit, place) => card(hit, searched ? place + 1 : null, actions)));
}

/** Says what was found; if nothing, or nothing likely, what to leave out. */
function report(hits) {
  if (!hits.length) {
    const label = where() ? "Search without the condition" : "";
    return tell(where() ? `Nothing fulfils “${where()}”.` : "Nothing was found.", { note: true, label, action: withoutCondition });
  }
  const weakest = hits[0].values.reduce((low, one) => (!low || one.score < low.score ? one : low), null);
  if (!weakest || weakest.score >= UNLIKELY) return tell(`${hits.length} ${hits.length === 1 ? "picture" : "pictures"}, best first.`);
  const name = `${weakest.excluded ? "not " : ""}${words(weakest.attribute)}: ${weakest.value}`;
  const action = () => {
    setChip(all(".value").find((chip) => chip.dataset.value === `${weakest.attribute}=${weakest.value}`), "any");
    changed();
  };
  const nothing = hits[0].values.length > 1 ? "Nothing seems to have all these values" : `Nothing seems to be “${name}”`;
  tell(`${nothing}; these come nearest.`, { note: true, label: `Leave out “${name}”`, action });
}

function withoutCondition() {
  $("where").value = "";
  changed();
}

function heatChoices(hits) {
  const names = hits.length ? [...new Set([...Object.keys(hits[0].cosines), ...hits[0].values.map((one) => one.attribute)])] : [];
  $("heats").hidden = !names.length;
  $("heat").replaceChildren(new Option("none", ""), ...names.map((name) => new Option(words(name), name)));
  $("heat").value = heat === "" || names.includes(heat) ? heat : names[0] || "";
}

function heated(picture, attribute) {
  return attribute ? `${picture.replace("pictures/", "attention/")}&attribute=${encodeURIComponent(attribute)}` : picture;
}

async function drawHeat() {
  const attribute = $("heat").value;
  const mine = asked;
  for (const item of all(".hit")) item.querySelector("img").src = heated(item.dataset.picture, attribute);
  if (!query) return;
  if (!query.file) return void ($("preview").src = heated(query.picture, attribute));
  try {
    const heats = attribute && (await answer(ask("attention", { method: "POST", body: form([["attributes", attribute]]) })));
    if (mine === asked && $("heat").value === attribute) $("preview").src = heats ? heats.attention[attribute] : query.address;
  } catch (error) {
    if (mine === asked) fail(error, drawHeat);
  }
}

// Events

for (const box of boxes()) box.addEventListener("change", () => (query ? changed() : showWeights()));
for (const weight of all(".weight")) weight.addEventListener("change", () => query && changed());
for (const chip of all(".value")) {
  chip.addEventListener("click", () => {
    const state = { any: "wanted", wanted: "excluded", excluded: "any" }[chip.dataset.state];
    if (state === "wanted") {
      for (const other of chip.parentElement.querySelectorAll("[data-state=wanted]")) setChip(other, "any"); // one of an attribute
    }
    setChip(chip, state);
    changed();
  });
}
if ($("where")) $("where").addEventListener("change", () => changed());
$("ask").addEventListener("submit", (event) => event.preventDefault());
$("heat").addEventListener("change", () => {
  heat = $("heat").value;
  history.replaceState(null, "", address());
  drawHeat();
});
$("others").addEventListener("click", () => {
  seed += 1;
  changed();
});
$("further").addEventListener("click", () => {
  top = Math.min(MOST, top + PAGE);
  changed({ keep: true });
});
$("remove").addEventListener("click", () => {
  show(null);
  $("file").focus();
  changed();
});
$("more").addEventListener("click", (event) => {
  const { attribute } = event.target.dataset;
  if (!attribute) return;
  $("more").hidePopover();
  pick(menuOf, [attribute]);
});
$("file").addEventListener("change", (event) => {
  if (event.target.files[0]) upload(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => event.clipboardData.files[0] && upload(event.clipboardData.files[0]));
addEventListener("popstate", restore);
if (matchMedia("(max-width: 860px)").matches) for (const one of all(".values")) one.open = false; // results are nearer
arrows($("hits"));
restore();
