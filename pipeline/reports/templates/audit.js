// Script of the page of `agman audit`: one finding at a time, decided by key or button. Text is set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const { dataset, digest, labelsDigest, values: valuesJson } = $("review").dataset;
const values = JSON.parse(valuesJson);
const cards = [...document.querySelectorAll(".finding")];
const findings = cards.map((card) => JSON.parse(card.dataset.finding));
const keys = findings.map((one) => JSON.stringify([one.image, one.attribute, one.label]));
const place = `agman-audit ${digest}`;
const undone = []; // [number, decision before], newest last
let decisions = {}; // key of a label -> its row of the corrections
let kept = true; // whether this browser keeps the decisions
let current = 0;

function load() {
  try {
    decisions = JSON.parse(localStorage.getItem(place)) || {};
  } catch {
    kept = false; // private windows may have no storage
  }
}

function save(key, decision) {
  if (kept) load(); // another tab may have decided something
  if (decision) decisions[key] = decision;
  else delete decisions[key];
  try {
    localStorage.setItem(place, JSON.stringify(decisions));
  } catch {
    kept = false;
  }
}

function words(decision) {
  return { keep: "kept", change: `changed to ${decision.new_value}`, drop: "dropped" }[decision.action];
}

function say(first = "") {
  const rows = Object.values(decisions);
  const count = (action) => rows.filter((row) => row.action === action).length;
  const left = keys.filter((key) => !decisions[key]).length;
  const parts = [first, `${current + 1} of ${findings.length}.`, left ? `${left} to decide.` : "All are decided."];
  parts.push(rows.length ? `${count("keep")} kept, ${count("change")} changed, ${count("drop")} dropped.` : "");
  parts.push(kept ? "" : "This browser does not keep them: download before you close the page.");
  $("status").textContent = parts.filter(Boolean).join(" ");
}

function show(number, first) {
  current = number;
  const one = findings[number], decision = decisions[keys[number]];
  cards.forEach((card, i) => { card.hidden = i !== number; });
  cards[number].querySelector(".decision").textContent = decision ? `Decided: ${words(decision)}` : "";
  const others = values[one.attribute].filter((value) => value !== one.label);
  const chosen = decision && decision.action === "change" ? decision.new_value : one.suggestion;
  const choose = chosen === null ? [new Option("choose …", "", true, true)] : [];
  $("value").replaceChildren(...choose, ...others.map((value) => new Option(value, value, false, value === chosen)));
  $("previous").disabled = number === 0;
  $("next").disabled = number === findings.length - 1;
  $("undo").disabled = !undone.length;
  $("download").disabled = !Object.keys(decisions).length;
  say(first);
}

function decide(action) {
  const one = findings[current], key = keys[current];
  const new_value = action === "change" ? $("value").value : "";
  if (action === "change" && !values[one.attribute].includes(new_value)) {
    $("value").focus();
    return say("Choose the new value first.");
  }
  undone.push([current, decisions[key]]);
  const decision = { image: one.image, attribute: one.attribute, value: one.label, action, new_value };
  save(key, decision);
  const open = [...keys.keys()].find((i) => i > current && !decisions[keys[i]]);
  const next = open ?? [...keys.keys()].find((i) => !decisions[keys[i]]) ?? current;
  show(next, `${one.label}: ${words(decision)}.`);
}

function undo() {
  if (!undone.length) return;
  const [number, before] = undone.pop();
  save(keys[number], before);
  show(number, "Undone.");
}

function download() {
  const columns = ["image", "attribute", "value", "action", "new_value"];
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = Object.values(decisions).map((row) => [dataset, labelsDigest, ...columns.map((name) => row[name])]);
  const lines = [["dataset", "digest", ...columns], ...rows].map((row) => `${row.map(cell).join(",")}\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "text/csv" }));
  link.download = `${dataset}-corrections.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`${link.download} has ${rows.length} ${rows.length === 1 ? "row" : "rows"}.`);
}

const step = (by) => { if (findings[current + by]) show(current + by); };
const acts = { k: () => decide("keep"), c: () => decide("change"), d: () => decide("drop"), u: undo };
acts.ArrowLeft = () => step(-1);
acts.ArrowRight = () => step(1);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === $("value") || !acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
});
for (const action of ["keep", "change", "drop"]) $(action).addEventListener("click", () => decide(action));
$("undo").addEventListener("click", undo);
$("previous").addEventListener("click", acts.ArrowLeft);
$("next").addEventListener("click", acts.ArrowRight);
$("download").addEventListener("click", download);
addEventListener("beforeunload", (event) => {
  if (!kept && Object.keys(decisions).length) event.preventDefault();
});
load();
$("controls").hidden = false;
show(Math.max(0, keys.findIndex((key) => !decisions[key])));
