// Goes through issues one by one. The server has the data and the decisions; the page keeps a few issues ahead.

const $ = id => document.getElementById(id);
const AHEAD = 8, REFILL = 4;
const ESTIMATE_FROM = 20;  // words drawn at random: an interval from fewer says nothing

let about = null, queue = [], members = [], edit = null, shownAt = 0, choicesLoaded = false, elsewhereAsked = 0;
// Where the list of issues is read on. An answer counts only in the round in which it was asked for.
let filter = {which: "open"}, ranking = 0, place = 0, total = 0, atEnd = false, loading = null, round = 0;
// Ranges of words that were decided while an answer was on its way: it may still have them.
let recent = [];
// One thing is done at a time; what is asked for meanwhile waits.
let busy = false, waiting = [];

// ---- talking to the server

async function ask(path, body) {
  let response;
  try {
    response = await fetch(`api/${path}`, body === undefined ? {} : {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)});
  } catch {
    throw new Error("the server does not answer: is tokloss review still running?");
  }
  if (response.status === 403) throw new Error("this page is not the one the server knows: open the address it printed");
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function query(extra) {
  const given = Object.entries({...filter, ...extra}).filter(([, value]) => value !== "" && value != null);
  return new URLSearchParams(given).toString();
}

function problem(error) {
  $("problem").textContent = error ? `Not saved: ${error.message}.` : "";
  $("problem").hidden = !error;
}

function load(count) {
  if (loading) return loading;
  const mine = round;
  const asked = ask(`issues?${query({start: place, count})}`).then(answer => {
    if (mine !== round) return;
    if (filter.which === "open" && answer.ranking !== ranking) return readFromStart(answer.ranking);
    if (answer.drawn && !queue.length && isPlain()) queue.push(answer.drawn);
    for (const item of answer.items)
      if (!covered(item, recent) && !covered(item, queue.map(rangeOf))) queue.push(item);
    [place, total] = [answer.next, answer.total];
    atEnd = filter.which !== "open" || place >= total;
  }).finally(() => {
    if (mine !== round) return;
    loading = null;
    recent = [];
  });
  loading = asked;
  return asked;
}

// Words drawn at random are drawn from all of them.
const isPlain = () => Object.entries(filter).every(([name, value]) => name === "which" ? value === "open" : !value);

// The order has changed: places in it mean nothing any more. (Decided issues do not come again.)
function readFromStart(newRanking) {
  round += 1;
  [ranking, place, atEnd, loading, recent] = [newRanking, 0, false, null, []];
}

const rangeOf = item => [item.key[0], item.key[1], item.start, item.stop];
const covered = (item, ranges) =>
  ranges.some(([source, row, start, stop]) => item.key[0] === source && item.key[1] === row &&
    item.key[2] >= start && item.key[2] < stop);

// ---- drawing

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const spanAt = (spans, word) => spans.find(([start, end]) => word >= start && word < end);
const textOf = (item, start, stop) => item.words.slice(start - item.first, stop - item.first).join(" ");

function described(item, spans) {
  const inside = spans.filter(([start, end]) => start < item.stop && item.start < end);
  return inside.map(([start, end, type]) => `${type} “${textOf(item, start, end)}”`).join(", ") || "no entity";
}

function lane(item, spans, word, kind, extra) {
  const span = spanAt(spans, word);
  if (!span) return element("span", {class: `lane none${extra}`, "aria-hidden": "true"}, edit ? "\u00a0" : "O");
  const [start, end, type] = span;
  const ends = (word === start ? " first" : "") + (word === end - 1 ? " last" : "");
  return element("span", {class: `lane ${kind}${ends}${extra}`, "aria-hidden": "true"}, word === start ? type : "\u00a0");
}

function drawSentence(item) {
  const box = $("sentence");
  box.removeAttribute("role");
  box.removeAttribute("aria-label");
  box.replaceChildren();
  if (item.first > 0) box.append(element("span", {class: "cut"}, `${item.first} words before … `));
  item.words.forEach((text, i) => {
    const word = item.first + i, inside = word >= item.start && word < item.stop;
    const facts = [item.losses[i] === null ? "no label" : `loss ${item.losses[i].toFixed(2)}`];
    if (item.probs[i] !== null) facts.push(`the model's tag has a probability of ${item.probs[i].toFixed(2)}`);
    const classes = `word${inside ? " in" : ""}${word === item.word ? " at" : ""}`;
    const lanes = [];
    if (inside || spanAt(item.label_spans, word)) lanes.push(lane(item, item.label_spans, word, "given", ""));
    if (inside) lanes.push(lane(item, item.suggested_spans, word, "new", " gap"));
    box.append(element("span", {class: classes, title: facts.join(", ")}, element("span", {class: "w"}, text), ...lanes), "\u200b");
  });
  const rest = item.left_out - item.first;
  if (rest > 0) box.append(element("span", {class: "cut"}, ` … ${rest} more words`));
}

function show() {
  edit = null;
  $("edit-tools").hidden = true;
  $("actions").hidden = false;
  const item = queue[0];
  $("card").hidden = !item;
  $("end").hidden = Boolean(item);
  if (!item) return showEnd();
  shownAt = performance.now();
  const spans = about.spans;
  const given = spans ? described(item, item.label_spans) : item.labels[0], new_ = spans ? described(item, item.suggested_spans) : item.tags[0];
  $("question").textContent = `“${textOf(item, item.start, item.stop)}”: ${item.labels.map(tag => tag ?? "–").join(" ")} → ${item.tags.map(tag => tag ?? "–").join(" ")}`;
  const figures = [item.id];
  if (item.score !== null) figures.push(`score ${item.score.toFixed(2)}`);
  if (item.loss !== null) figures.push(`loss ${item.loss.toFixed(2)}`);
  if (item.predicted) figures.push(`the model says ${item.predicted} (${item.probs[item.word - item.first].toFixed(2)})`);
  if (item.drawn) figures.push("drawn at random");
  $("where").textContent = figures.join(" · ");
  $("why").textContent = item.why;
  $("why").hidden = !item.why;
  $("now").textContent = item.own ? `You decided: ${verb(item.own)}.` : "";
  $("now").hidden = !item.own;
  drawSentence(item);
  drawOthers(item);
  $("status").textContent = `Next issue. In the data: ${given}. Suggested: ${new_}. Sentence: ${item.words.join(" ")}`;
  $("elsewhere").replaceChildren();
  drawElsewhere(item, false);
}

const verb = decision => ({keep: "keep the label", accept: "accept the suggestion", skip: "skip",
  edit: `edit to ${decision.tags.map(tag => tag ?? "–").join(" ")}`})[decision.action];

function drawOthers(item) {
  const lines = item.others.map(other => element("li", {}, element("b", {}, other.reviewer),
    `: ${verb(other)} (${other.tags.map(tag => tag ?? "–").join(" ")})`));
  $("others").replaceChildren(...(lines.length ? [element("h3", {}, "What others decided"), element("ul", {}, ...lines)] : []));
}

async function drawElsewhere(item, examples) {
  const box = $("elsewhere"), mine = ++elsewhereAsked;
  let answer;
  try {
    answer = await ask("elsewhere", {key: item.key, examples});
  } catch (error) {
    answer = {failed: error.message};
  }
  if (queue[0] !== item || mine !== elsewhereAsked) return;
  $("examples").hidden = answer.done < 1;
  if (answer.failed) return box.replaceChildren(element("p", {class: "hint"}, `Not known: ${answer.failed}`));
  if (answer.done < 1) {
    box.replaceChildren(element("p", {class: "hint"}, `Reading the corpus: ${Math.floor(100 * answer.done)} % …`));
    return setTimeout(() => queue[0] === item && mine === elsewhereAsked && drawElsewhere(item, false), 1000);
  }
  box.replaceChildren(element("ul", {}, ...answer.words.map(({word, usages}) => {
    const counts = usages.map(use => element("span", {class: "use"}, `${use.label} ${use.count.toLocaleString("en")}×`));
    const line = element("li", {}, element("b", {}, word), "  ", ...counts);
    const places = usages.flatMap(use => use.examples.map(example => element("li", {dir: "auto"}, `${use.label}: ${example.before} `,
      element("b", {}, example.word), ` ${example.after}`)));
    if (places.length) line.append(element("ul", {class: "places"}, ...places));
    return line;
  })));
}

function drawProgress(progress) {
  about.progress = progress;
  const parts = [`${progress.decided.toLocaleString("en")} decided (${progress.keep} kept, ${progress.accept} accepted, ${progress.edit} edited)`];
  if (progress.skip) parts.push(`${progress.skip} skipped`);
  parts.push(`${about.issues.toLocaleString("en")} issues by ${about.rank || "score"}`);
  if (progress.pace) parts.push(`${progress.pace.toFixed(0)} a minute`);
  parts.push(`reviewer ${about.reviewer}`);
  if (progress.estimate) {
    const {labels, drawn, low, high} = progress.estimate, share = n => `${(100 * n / labels).toFixed(high < labels / 100 ? 2 : 1)} %`;
    const says = `${share(low)} to ${share(high)} of all labels are wrong, by ${drawn} drawn at random`;
    parts.push(drawn < ESTIMATE_FROM ? `${drawn} drawn at random` : says);
  }
  $("progress").textContent = parts.join(" · ");
  document.querySelectorAll('[data-action="undo"], #end-undo').forEach(b => { b.disabled = !progress.can_undo; });
}

function showEnd() {
  const open = filter.which === "open";
  $("end-title").textContent = open ? "No more issues here" : "Nothing to show";
  $("end-says").textContent = open ?
    `You have gone through all ${total.toLocaleString("en")} issues that the filter shows. End the review with Ctrl-C in the terminal; it tells you the next command.` :
    "There are no such issues.";
  $("status").textContent = $("end-title").textContent;
  $("end-title").focus();
}

// ---- deciding

async function start() {
  readFromStart(about.progress.ranking);
  queue = [];
  await showNext(1);
}

async function advance() {
  if (filter.which === "open" && about.progress.ranking !== ranking) {
    readFromStart(about.progress.ranking);
    queue.splice(1);  // what was fetched ahead is no longer what comes next
  }
  await showNext(AHEAD);
}

async function showNext(count) {
  while (!queue.length && !atEnd) await load(count);
  show();
  if (queue.length < REFILL && !atEnd) load(AHEAD).catch(problem);  // keys work meanwhile
}

// Do something now, or after what is under way.
function inTurn(work) {
  if (busy) waiting.push(work);
  else work();
}

async function guarded(work) {
  if (busy) return void waiting.push(() => guarded(work));
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
    problem(null);
  } catch (error) {
    waiting = [];  // they were meant for what did not come
    problem(error);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
  while (!busy && waiting.length) waiting.shift()();
}

const decide = (action, keys, spans) => guarded(async () => {
  const seconds = (performance.now() - shownAt) / 1000;
  const first = queue[0];
  const answer = await ask("decide", {action, keys, spans, seconds});
  queue = queue.filter(item => item !== first && !covered(item, answer.decided));
  if (loading) recent.push(...answer.decided);
  if (answer.drawn && isPlain())
    queue = [answer.drawn, ...queue.filter(item => !covered(item, [rangeOf(answer.drawn)]))];
  drawProgress(answer.progress);
  if ($("group").open) $("group").close();
  await advance();
});

const undo = () => guarded(async () => {
  const answer = await ask("undo", {});
  const again = answer.items.map(rangeOf);
  queue = [...answer.items, ...queue.filter(item => !covered(item, again))];
  drawProgress(answer.progress);
  show();
});

// ---- editing

function beginEdit() {
  const item = queue[0];
  edit = {spans: item.suggested_spans.map(span => [...span]), from: item.start, to: item.start, at: item.start};
  $("actions").hidden = true;
  $("edit-tools").hidden = false;
  const box = $("sentence");
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-multiselectable", "true");
  box.setAttribute("aria-label", "Words of the sentence");
  drawEdit();
  box.querySelector('[tabindex="0"]').focus();
  $("status").textContent = `Editing. ${$("edit-tools").querySelector(".hint").textContent}`;
}

function drawEdit() {
  const item = queue[0], focused = $("sentence").contains(document.activeElement);
  const [low, high] = [Math.min(edit.from, edit.to), Math.max(edit.from, edit.to)];
  $("sentence").replaceChildren(...item.words.flatMap((text, i) => {
    const word = item.first + i, span = spanAt(edit.spans, word);
    const option = element("span", {class: "word", role: "option", tabindex: word === edit.to ? "0" : "-1",
      "aria-selected": String(word >= low && word <= high), "aria-label": `${text}, ${span ? span[2] : "no entity"}`,
      "data-word": word}, element("span", {class: "w"}, text), lane(item, edit.spans, word, "new", ""));
    return [option, "\u200b"];
  }));
  if (focused) $("sentence").querySelector('[tabindex="0"]').focus();
}

function cutOut(spans, low, high) {
  return spans.flatMap(([start, end, type]) =>
    [[start, Math.min(end, low), type], [Math.max(start, high), end, type]].filter(([a, b]) => a < b));
}

function setType(type) {
  const item = queue[0], [low, high] = [Math.min(edit.from, edit.to), Math.max(edit.from, edit.to) + 1];
  if (!item.labelled.slice(low - item.first, high - item.first).some(Boolean)) return;
  edit.spans = type === null && !about.spans ? edit.spans : cutOut(edit.spans, low, high);
  if (type !== null && about.spans) edit.spans.push([low, high, type]);
  if (type !== null && !about.spans) for (let word = low; word < high; word++) edit.spans.push([word, word + 1, type]);
  edit.from = edit.to;
  drawEdit();
  const said = type === null ? "no entity" : type;
  $("status").textContent = `${textOf(item, low, high)}: ${said}`;
}

function endEdit() {
  show();
  document.querySelector('[data-action="edit"]').focus();
}

function editKey(event) {  // says whether the key does anything
  const item = queue[0], last = item.first + item.words.length - 1;
  const rtl = getComputedStyle($("sentence")).direction === "rtl" ? -1 : 1;
  const moves = {ArrowLeft: -rtl, ArrowRight: rtl, ArrowUp: -1, ArrowDown: 1, Home: -Infinity, End: Infinity};
  if (event.key in moves && $("sentence").contains(event.target)) {
    edit.to = Math.max(item.first, Math.min(last, edit.to + moves[event.key]));
    if (!event.shiftKey) edit.from = edit.to;
    drawEdit();
  } else if (event.key === "Escape") endEdit();
  else if (event.key === "Enter" && event.target.tagName !== "BUTTON") saveEdit();
  else if (/^[1-9]$/.test(event.key) && about.types[event.key - 1] !== undefined) setType(about.types[event.key - 1]);
  else if (["0", "Delete", "Backspace"].includes(event.key)) setType(null);
  else return false;
  return true;
}

const saveEdit = () => decide("edit", [queue[0].key], edit.spans);

// ---- groups

const openGroup = () => guarded(async () => {
  const item = queue[0];
  if (!item) return;
  const answer = await ask("group", {key: item.key});
  members = answer.items;
  $("group-title").textContent = $("question").textContent;
  const places = members.length === 1 ? "This is the only open place" : `${members.length} open places`;
  $("group-says").textContent = `${places} with these words, this label and this suggestion${answer.more ? ", and more" : ""}. Those that are ticked are decided at once.`;
  $("group-list").replaceChildren(...members.map((member, i) => element("li", {}, element("label", {},
    element("input", {type: "checkbox", checked: "", "data-member": i}),
    element("span", {dir: "auto"}, `${member.start > member.first ? "… " : ""}${textOf(member, Math.max(member.first, member.start - 10), member.start)} `,
      element("b", {}, textOf(member, member.start, member.stop)), ` ${textOf(member, member.stop, member.stop + 10)}`)))));
  countGroup();
  $("group").showModal();
});

const ticked = () => [...$("group-list").querySelectorAll("input:checked")].map(box => members[box.dataset.member].key);

function countGroup() {
  const count = ticked().length;
  document.querySelectorAll("#group .number").forEach(box => { box.textContent = count; });
  document.querySelectorAll('[data-group="keep"], [data-group="accept"]').forEach(b => { b.disabled = !count; });
}

// ---- filters and help

async function fillChoices() {
  if (choicesLoaded) return;
  choicesLoaded = true;
  const choices = await ask("choices");
  $("pair").append(...choices.pairs.map(({label, suggested, count}) =>
    element("option", {value: JSON.stringify([label, suggested])}, `${label} → ${suggested} (${count.toLocaleString("en")})`)));
  for (const [name, values] of Object.entries(choices.slices)) {
    const options = values.map(value => element("option", {value}, value));
    $("slices").append(element("label", {}, name, element("select", {name: `by-${name}`}, element("option", {value: ""}, "all"), ...options)));
  }
}

function drawFilter() {
  document.querySelectorAll(".of-open").forEach(box => { box.hidden = $("which").value !== "open"; });
}

function readFilter() {
  const form = new FormData($("filter-form"));
  const [label, suggested] = form.get("pair") ? JSON.parse(form.get("pair")) : ["", ""];
  form.delete("pair");
  filter = {...Object.fromEntries(form), label, suggested};
  const open = filter.which === "open";
  drawFilter();
  const says = open ? Object.entries(filter).filter(([name, value]) => value && name !== "which").map(([name, value]) => `${name} ${value}`) :
    [$("which").selectedOptions[0].textContent];
  $("filter-says").textContent = says.join(", ");
}

const applyFilter = () => guarded(async () => { readFilter(); await start(); });

async function openHelp() {
  $("help").showModal();
  try {
    const {on, every, rankings, pairs: rates} = await ask("learnt");
    const often = rates.map(({label, suggested, decided, changed}) => element("li", {},
      `of ${label} → ${suggested} you change ${Math.round(100 * changed / decided)} % (${changed} of ${decided})`));
    const order = !on ? "The order of the issues is that of the table." : rankings ?
      `The issues that are left follow your decisions as well as their scores; they are ranked again after every ${every} decisions.` :
      `After ${every} decisions, the issues that are left are ranked again, by what you have decided.`;
    $("learnt").replaceChildren(element("p", {}, order), element("ul", {}, ...often));
    const {pairs, conflicts} = await ask("agreement");
    const lines = pairs.map(pair => element("p", {}, `${pair.first} and ${pair.second}: the same tag for ${pair.same} of ${pair.words} words` +
      (pair.kappa === null ? "" : `, Cohen’s kappa ${pair.kappa.toFixed(2)}`)));
    $("agreement").replaceChildren(...lines, element("p", {}, pairs.length ? `${conflicts} words have different tags from different reviewers.` : "Nobody else has decided on the same words yet."));
  } catch (error) { $("agreement").textContent = error.message; }
}

// ---- keys

const ACTIONS = {
  keep: () => decide("keep", [queue[0].key]), accept: () => decide("accept", [queue[0].key]),
  skip: () => decide("skip", [queue[0].key]), edit: beginEdit, group: openGroup, undo,
};
const KEYS = {k: "keep", a: "accept", e: "edit", s: "skip", g: "group", u: "undo"};

function act(name) {
  if ((!queue.length && name !== "undo") || (name === "undo" && !about.progress.can_undo)) return;
  ACTIONS[name]();
}

// What a key does on the page as it is now; says whether it does anything.
function press(event) {
  if (edit) return editKey(event);
  if (event.ctrlKey) return act("undo"), true;
  if (!$("keys-on").checked || event.repeat) return false;
  const key = event.key.toLowerCase();
  if ($("group").open) {
    if (key !== "k" && key !== "a") return false;
    if (ticked().length) decide(KEYS[key], ticked());
  } else if ($("help").open) return false;
  else if (KEYS[key]) act(KEYS[key]);
  else if (key === "p") $("examples").click();
  else if (key === "f") { $("filters").open = true; $("which").focus(); }
  else if (key === "?") openHelp();
  else return false;
  return true;
}

document.addEventListener("keydown", event => {
  if (!about || event.altKey || event.metaKey || (event.ctrlKey && event.key !== "z")) return;
  if (!edit && event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  if (!busy) return void (press(event) && event.preventDefault());
  if (event.repeat || ["Tab", "Shift"].includes(event.key)) return;
  // It is for what comes next. Enter and Space work on the button that has the focus, as always, if nothing is edited.
  if (!edit && event.target.matches("button, summary, a, input") && ["Enter", " "].includes(event.key)) return;
  const {key, shiftKey, ctrlKey} = event;
  waiting.push(() => press({key, shiftKey, ctrlKey, repeat: false, target: document.activeElement}));
  event.preventDefault();
});

// The second click of a double click is for what was there before.
document.querySelectorAll("[data-action]").forEach(b =>
  b.addEventListener("click", event => event.detail < 2 && inTurn(() => act(b.dataset.action))));
$("examples").addEventListener("click", () => queue.length && drawElsewhere(queue[0], true));
$("end-undo").addEventListener("click", () => inTurn(() => act("undo")));
$("end-all").addEventListener("click", () => $("filter-reset").click());
$("edit-save").addEventListener("click", () => !busy && saveEdit());
$("edit-cancel").addEventListener("click", () => !busy && endEdit());
for (const [id, name] of [["from-label", "label_spans"], ["from-suggested", "suggested_spans"]])
  $(id).addEventListener("click", () => { edit.spans = queue[0][name].map(span => [...span]); drawEdit(); });
$("sentence").addEventListener("click", event => {
  const option = event.target.closest("[data-word]");
  if (!edit || !option) return;
  const word = Number(option.dataset.word);
  // The first tap sets the beginning, the second the end.
  const extend = event.shiftKey || (edit.tapped && edit.from === edit.to && word !== edit.from);
  [edit.from, edit.to, edit.tapped] = [extend ? edit.from : word, word, !extend];
  drawEdit();
});
$("group").addEventListener("change", countGroup);
document.querySelectorAll("[data-group]").forEach(b => b.addEventListener("click", () =>
  b.dataset.group === "close" ? $("group").close() : decide(b.dataset.group, ticked())));
$("filters").addEventListener("toggle", () => $("filters").open && fillChoices().catch(problem));
$("filter-form").addEventListener("submit", event => { event.preventDefault(); applyFilter(); });
$("filter-form").addEventListener("reset", () => setTimeout(applyFilter));
$("which").addEventListener("change", drawFilter);
$("help-open").addEventListener("click", openHelp);
$("help-close").addEventListener("click", () => $("help").close());
$("keys-on").checked = localStorage.getItem("keys") !== "off";
$("keys-on").addEventListener("change", () => localStorage.setItem("keys", $("keys-on").checked ? "on" : "off"));

guarded(async () => {
  about = await ask("about");
  document.title = `Review of ${about.output}`;
  $("title").textContent = `Label issues of ${about.output}`;
  $("types").replaceChildren(...about.types.map((type, i) => {
    const button = element("button", {type: "button"}, `${type} `, i < 9 ? element("kbd", {}, String(i + 1)) : "");
    button.addEventListener("click", () => setType(type));
    return button;
  }));
  if (about.spans) {
    const none = element("button", {type: "button"}, "no entity ", element("kbd", {}, "0"));
    none.addEventListener("click", () => setType(null));
    $("types").append(none);
  }
  drawProgress(about.progress);
  await start();
});
