"use strict";

const SHOWN = 20; // results of each side before "show all"
// Words that are not highlighted, since they would be everywhere; shorter ones are not either.
const COMMON = new Set("and are can does for from how into its not that the their this was what when which with you".split(" "));
const $ = (id) => document.getElementById(id);
const board = $("board");
const state = { info: null, answer: null, all: false, request: null, waiting: null };

// An element; children are text unless they are elements, so no document can bring markup.
function make(tag, properties, ...children) {
  const { label, ...rest } = properties || {};
  const element = Object.assign(document.createElement(tag), rest);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

function milliseconds(value) {
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

// Talking to the server

class Refused extends Error {
  constructor(status, message, seconds) {
    super(message);
    this.status = status;
    this.seconds = seconds;
  }
}

async function ask(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.authorization = `Bearer ${key}`;
  const options = body ? { method: "POST", body: JSON.stringify(body), headers, signal } : { headers, signal };
  const answer = await fetch(path, options);
  if (answer.ok) return answer.json();
  const detail = await answer.json().then((b) => b.detail, () => answer.statusText);
  const words = Array.isArray(detail) ? detail.map((d) => d.msg).join("; ") : detail;
  throw new Refused(answer.status, words, Number(answer.headers.get("retry-after")) || 2);
}

// What is said beside results: nothing yet, nothing found, something wrong

function panel(title, text, children = [], error = false) {
  $("panel").replaceChildren(make("h2", {}, title), ...(text ? [make("p", {}, text)] : []), ...children);
  $("panel").className = error ? "error" : "";
  $("panel").hidden = false;
  $("results").hidden = true;
}

function welcome() {
  say("");
  const examples = (state.info?.examples || []).map((text) => {
    const chip = make("button", { type: "button" }, text);
    chip.addEventListener("click", () => {
      $("query").value = text;
      search();
    });
    return make("li", {}, chip);
  });
  const chips = examples.length ? [make("ul", { className: "chips" }, ...examples)] : [];
  panel("Two orders, side by side", "Left what BM25 finds, right how the ranker would have it.", chips);
}

function again(seconds, action) {
  clearTimeout(state.waiting);
  state.waiting = setTimeout(action, 1000 * seconds);
}

function askForKey(retry) {
  const field = make("input", { type: "password", autocomplete: "off", placeholder: "API key", label: "API key" });
  const form = make("form", {}, field, make("button", { type: "submit" }, "Go on"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("key", field.value);
    retry();
  });
  panel("This server asks for a key", "It is kept until this tab is closed.", [form]);
  field.focus();
}

function complain(error, retry) {
  busy(false);
  say("");
  if (error instanceof Refused && error.status === 401) return askForKey(retry);
  const button = make("button", { type: "button" }, "Try again");
  button.addEventListener("click", retry);
  if (error instanceof Refused && error.status === 429) {
    panel("The server is busy", `It asks to come back in ${error.seconds} s; this page will.`, [button], true);
    return again(error.seconds, retry);
  }
  if (error instanceof Refused) return panel("That did not work", error.message, [button], true);
  panel("The server does not answer", "Is it still running? This page tries again by itself.", [button], true);
  again(2, retry);
}

// Searching

function busy(is) {
  document.body.classList.toggle("busy", is);
  $("results").setAttribute("aria-busy", is);
}

function say(...parts) {
  $("status").replaceChildren(...parts);
}

function versus() {
  return document.querySelector("input[name=versus]:checked").value;
}

async function search() {
  clearTimeout(state.waiting);
  state.request?.abort();
  const query = $("query").value.trim();
  remember(query);
  if (!query) {
    state.answer = null;
    busy(false);
    return welcome();
  }
  const request = (state.request = new AbortController());
  busy(true);
  say("Searching …");
  try {
    const body = { query, depth: Number($("depth").value), teacher: versus() === "teacher" };
    const answer = await ask("search", body, request.signal);
    state.answer = { ...answer, query };
    state.all = false;
    show();
  } catch (error) {
    if (error.name !== "AbortError") complain(error, search);
  } finally {
    if (request === state.request) busy(false);
  }
}

function remember(query) {
  const values = new URLSearchParams();
  if (query) values.set("q", query);
  if ($("depth").value !== $("depth").defaultValue) values.set("depth", $("depth").value);
  if (versus() !== "bm25") values.set("versus", versus());
  history.replaceState(null, "", values.size ? `?${values}` : location.pathname);
  document.title = query ? `${query} · InRanker` : "InRanker";
}

// Showing

function sides() {
  const { answer, info } = state;
  const count = answer.documents.length;
  const student = {
    name: info?.student || "student",
    what: "reranked",
    time: answer.ranking_ms.student,
    rank: (d) => d.ranks.student,
    score: (d) => d.scores.student,
    top: 1,
    count,
  };
  const bm25 = {
    name: "BM25",
    what: "first stage",
    time: answer.retrieval_ms,
    rank: (d) => answer.documents.indexOf(d) + 1,
    score: (d) => d.bm25_score,
    top: Math.max(...answer.documents.map((d) => d.bm25_score)),
    count,
  };
  if (!("teacher" in answer.ranking_ms)) return [bm25, student];
  const teacher = {
    ...student,
    name: info?.teacher || "teacher",
    what: "teacher",
    time: answer.ranking_ms.teacher,
    rank: (d) => d.ranks.teacher,
    score: (d) => d.scores.teacher,
  };
  return [teacher, { ...student, what: "student" }];
}

function show() {
  const { documents, query } = state.answer;
  if (!documents.length) {
    say("");
    return panel("Nothing found", "No document shares a word with this query. BM25 needs one to start from.");
  }
  $("panel").hidden = true;
  $("results").hidden = false;
  const [left, right] = sides();
  const all = query.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
  const long = all.filter((word) => word.length > 2 && !COMMON.has(word));
  const words = new Set(long.length ? long : all);
  summarize(left, right);
  fill($("left"), left, right, words, (to, from) => badge(to, from, true));
  fill($("right"), right, left, words, (from, to) => badge(from, to, false));
  for (const button of document.querySelectorAll(".sides button")) {
    button.textContent = button.dataset.side === "left" ? left.name : right.name;
  }
  $("more").hidden = state.all || documents.length <= SHOWN;
  $("more").textContent = `Show all ${documents.length}`;
  draw();
}

function summarize(left, right) {
  const { documents } = state.answer;
  const top = Math.min(10, documents.length);
  const common = documents.filter((d) => left.rank(d) <= top && right.rank(d) <= top).length;
  const bold = (text) => make("b", {}, text);
  const both = [bold(`${common} of the first ${top}`), " are the same on both sides."];
  if (left.what === "teacher") {
    const times = left.time / right.time;
    const speed = times >= 1.1 ? [" The student is ", bold(`${times.toFixed(times < 10 ? 1 : 0)} times`), " as fast."] : [];
    return say(...both, ...speed);
  }
  say(
    bold(`${documents.length} documents`), " found in ", bold(milliseconds(left.time)), ", reranked in ",
    bold(milliseconds(right.time)), ". ", ...both,
  );
}

// How far a document moved: on the right side from where it came, on the left where it went.
function badge(here, there, leaving) {
  const by = leaving ? here - there : there - here;
  if (!by) return make("span", { className: "move", label: "not moved" }, "=");
  const arrow = by > 0 ? "▲" : "▼";
  const label = `${by > 0 ? "up" : "down"} ${Math.abs(by)}, ${leaving ? "to" : "from"} ${there}`;
  return make("span", { className: `move ${by > 0 ? "up" : "down"}`, label, title: label }, `${arrow} ${Math.abs(by)}`);
}

function fill(section, side, other, words, mark) {
  section.querySelector("h2").replaceChildren(
    side.name,
    make("small", {}, side.what),
    make("small", { className: "time" }, milliseconds(side.time)),
  );
  const ordered = [...state.answer.documents].sort((a, b) => side.rank(a) - side.rank(b));
  const cards = ordered.slice(0, state.all ? ordered.length : SHOWN).map((document_) => {
    const rank = side.rank(document_);
    const score = side.score(document_);
    const bar = make("i", {});
    bar.style.setProperty("--share", `${Math.max(0, Math.min(1, score / side.top)) * 100}%`);
    const summary = make(
      "summary",
      {},
      make("span", { className: "rank" }, `${rank}`),
      make("span", { className: "title" }, document_.title || document_.id),
      mark(rank, other.rank(document_)),
      make("span", { className: "snippet" }, ...highlight(snippet(document_.text, words), words)),
      make("span", { className: "score", label: `score ${score.toFixed(3)}` }, score.toFixed(3), bar),
    );
    const whole = make("p", { className: "whole" }, ...highlight(document_.text, words));
    if (document_.title) whole.prepend(make("b", {}, document_.title));
    const card = make("details", { className: "card" }, summary, whole);
    card.dataset.id = document_.id;
    card.addEventListener("toggle", draw);
    return make("li", {}, card);
  });
  section.querySelector("ol").replaceChildren(...cards);
}

function snippet(text, words) {
  const found = [...text.matchAll(/[\p{L}\p{N}_]+/gu)].find((m) => words.has(m[0].toLowerCase()));
  const start = found && found.index > 120 ? text.lastIndexOf(" ", found.index - 60) + 1 : 0;
  return (start ? "… " : "") + text.slice(start, start + 300);
}

function highlight(text, words) {
  return text
    .split(/([\p{L}\p{N}_]+)/u)
    .map((part) => (words.has(part.toLowerCase()) ? make("mark", {}, part) : part));
}

// Lines between the two places of a document

function draw() {
  const svg = $("moves");
  const frame = svg.getBoundingClientRect();
  const paths = [];
  if (frame.width > 0) {
    const right = new Map([...$("right").querySelectorAll(".card")].map((card) => [card.dataset.id, card]));
    for (const card of $("left").querySelectorAll(".card")) {
      const target = right.get(card.dataset.id);
      if (!target) continue;
      const [y1, y2] = [card, target].map((c) => c.getBoundingClientRect().top - frame.top + 24);
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      const [w, c] = [frame.width, frame.width / 2];
      path.setAttribute("d", `M2 ${y1} C${c} ${y1} ${c} ${y2} ${w - 2} ${y2}`);
      const places = [card, target].map((c) => Number(c.querySelector(".rank").textContent));
      path.setAttribute("class", places[0] > places[1] ? "up" : places[0] < places[1] ? "down" : "");
      path.dataset.id = card.dataset.id;
      paths.push(path);
    }
  }
  svg.replaceChildren(...paths);
}

function trace(id) {
  board.classList.toggle("tracing", Boolean(id));
  for (const element of board.querySelectorAll("[data-id]")) {
    element.classList.toggle("traced", element.dataset.id === id);
  }
}

for (const [on, off] of [["mouseover", "mouseleave"], ["focusin", "focusout"]]) {
  board.addEventListener(on, (event) => trace(event.target.closest(".card")?.dataset.id));
  board.addEventListener(off, () => trace(null));
}
new ResizeObserver(draw).observe(board);

// Keys

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("query").focus();
    $("query").select();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "range" || event.target.type === "radio") return;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const side = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
  const here = event.target.closest?.(".card");
  if (step && (here || event.target === $("query"))) {
    const list = here ? here.closest("ol") : $(board.dataset.side).querySelector("ol");
    const cards = [...list.querySelectorAll("summary")];
    const next = here ? cards[cards.indexOf(event.target) + step] || (step < 0 ? $("query") : null) : cards[0];
    if (next && !$("results").hidden) {
      event.preventDefault();
      next.focus();
    }
  } else if (side && here) {
    const twin = [...$(side).querySelectorAll(".card")].find((c) => c.dataset.id === here.dataset.id);
    if (twin) {
      event.preventDefault();
      turnTo(side);
      twin.querySelector("summary").focus();
    }
  }
});

function turnTo(side) {
  board.dataset.side = side;
  for (const button of document.querySelectorAll(".sides button")) {
    button.setAttribute("aria-pressed", button.dataset.side === side);
  }
}

// Start

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("query").addEventListener("input", () => {
  if (!$("query").value) search();
});
$("depth").addEventListener("input", () => {
  $("depth-shown").textContent = $("depth").value;
  if (state.answer) again(0.2, search);
});
$("versus").addEventListener("change", () => state.answer && search());
$("more").addEventListener("click", () => {
  state.all = true;
  show();
});
for (const button of document.querySelectorAll(".sides button")) {
  button.addEventListener("click", () => turnTo(button.dataset.side));
}

async function start() {
  clearTimeout(state.waiting);
  busy(true);
  try {
    state.info = await ask("collection");
  } catch (error) {
    if (error instanceof Refused && error.status === 503 && error.message.includes("still")) {
      panel("Reading the documents", "The search begins when they are indexed.");
      return again(error.seconds, start);
    }
    if (error instanceof Refused && error.status === 404) {
      busy(false);
      return panel("Nothing to search here", "This server ranks what is sent to it; the API page says how.");
    }
    return complain(error, start);
  }
  busy(false);
  const { name, documents, student, teacher, max_depth: deepest } = state.info;
  $("about").replaceChildren(
    make("b", {}, name), `, ${documents.toLocaleString("en")} documents, ranked by `, make("b", {}, student),
  );
  $("versus").hidden = $("versus-label").hidden = !teacher;
  $("depth").max = deepest;
  $("depth-shown").textContent = $("depth").value;
  search();
}

const given = new URLSearchParams(location.search);
$("query").value = given.get("q") || "";
if (given.has("depth")) $("depth").value = given.get("depth");
if (given.get("versus") === "teacher") document.querySelector("input[value=teacher]").checked = true;
$("depth-shown").textContent = $("depth").value;
start();
