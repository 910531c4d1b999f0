// The tree explorer of the report. All text from problems and models is set with textContent, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LIVE = new Set(["delim", "step_cap"]);
const index = JSON.parse(document.getElementById("index").textContent);
const at = (id) => document.getElementById(id);
const state = { problem: null, strategy: index.first ?? index.strategies[0], filter: "all", pruned: true, pinned: null, request: 0 };

// --- elements, colours, pieces of the page

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Low is warm, high is cool, and lightness falls to both ends: told apart without red-green vision.
const RAMP = [[200, 62, 60], [236, 150, 72], [243, 213, 128], [122, 196, 166], [38, 140, 160]];

function colour(score) {
  const place = Math.min(1, Math.max(0, score)) * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(place));
  const mix = RAMP[low].map((value, i) => Math.round(value + (RAMP[low + 1][i] - value) * (place - low)));
  return `rgb(${mix.join(",")})`;
}

async function piece(number) {
  const packed = Uint8Array.from(atob(at(`piece-${number}`).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// --- the list of problems

function outcome(correct) {
  return correct === true ? "right" : correct === false ? "wrong" : "";
}

function shown(problem) {
  const results = Object.values(problem.runs).map((run) => run[0] === true);
  const mine = problem.runs[state.strategy];
  if (state.filter === "split") return results.some(Boolean) && !results.every(Boolean);
  if (state.filter === "right") return mine && mine[0] === true;
  if (state.filter === "wrong") return mine && mine[0] !== true;
  return true;
}

function listProblems() {
  const list = at("problems");
  const visible = index.problems.filter(shown);
  list.replaceChildren(...visible.map((problem) => {
    const item = make("li", problem === state.problem ? "on" : "");
    const head = make("div", "head");
    head.append(make("span", "", problem.id));
    const dots = make("span", "outcomes");
    for (const strategy of index.strategies) {
      const run = problem.runs[strategy];
      const dot = make("span", `outcome ${run ? outcome(run[0]) : ""}`);
      dot.title = `${strategy}: ${run ? outcome(run[0]) || "undecided" : "not run"}`;
      dots.append(dot);
    }
    head.append(dots);
    item.append(head, make("div", "gist", problem.gist));
    item.addEventListener("click", () => choose(problem, state.strategy));
    return item;
  }));
  at("count").textContent = `${visible.length} of ${index.problems.length}`;
}

function listStrategies() {
  at("strategies").replaceChildren(...index.strategies.map((name) => {
    const run = state.problem.runs[name];
    const mark = !run ? "" : run[0] === true ? " ✓" : run[0] === false ? " ✗" : " ?";
    const button = make("button", "", name + mark);
    button.type = "button";
    button.setAttribute("role", "tab");
    button.setAttribute("aria-selected", String(name === state.strategy));
    button.disabled = !run;
    button.addEventListener("click", () => choose(state.problem, name));
    return button;
  }));
}

async function choose(problem, strategy) {
  const known = problem.runs[strategy] ? strategy : Object.keys(problem.runs)[0];
  Object.assign(state, { problem, strategy: known, pinned: null });
  listProblems();
  listStrategies();
  history.replaceState(null, "", `#${index.problems.indexOf(problem)}/${known}`); // the address is a bookmark
  const request = ++state.request;
  const number = problem.runs[known][1];
  if (number === null) {
    at("prompt").textContent = problem.gist;
    at("verdict").replaceChildren(make("span", "warning", "This tree is not in the page, which would be too large; see nodes.parquet."));
    at("tree").replaceChildren();
    at("solution").replaceChildren();
    return;
  }
  const run = await piece(number);
  const tree = await piece(run.tree);
  if (request !== state.request) return; // another problem was chosen meanwhile
  show(run, tree);
}

// --- one tree

function show(run, rows) {
  const tree = layOut(run, rows);
  at("prompt").textContent = run.prompt;
  at("verdict").replaceChildren(...verdict(run, tree));
  const picture = paint(run, tree);
  at("tree").replaceChildren(picture);
  const chosen = tree.nodes.find((node) => node.best && node.solution);
  at("tree").scrollTo(0, chosen ? chosen.y - at("tree").clientHeight / 2 : 0);
  const start = run.chosen === null || run.chosen === undefined ? null : run.solutions[run.chosen][0];
  describe(run, tree, start === -1 ? null : start);
}

function layOut(run, rows) {
  const nodes = rows.map(([parent, child, tokens, finish, score, logprob, text], id) =>
    ({ id, parent, child, tokens, finish, score, logprob, text, children: [], start: 0, depth: 1, solution: null, kept: false, best: false }));
  const roots = [];
  for (const node of nodes) { // parents come before children
    const parent = nodes[node.parent];
    if (parent) {
      parent.children.push(node);
      node.start = parent.start + parent.tokens;
      node.depth = parent.depth + 1;
    } else {
      roots.push(node);
    }
  }
  run.solutions.forEach(([id, answer, cls, agg, correct, complete], number) => {
    if (id < 0) return;
    // One step may stand for several solutions (particles that were drawn again); the chosen one names it.
    if (!nodes[id].solution || number === run.chosen) nodes[id].solution = { number, answer, cls, agg, correct, complete };
    for (const node of lineage(nodes, id)) {
      node.kept = true;
      node.best = node.best || number === run.chosen;
    }
  });
  return { nodes, roots };
}

function lineage(nodes, id) {
  const steps = [];
  for (let node = nodes[id]; node; node = nodes[node.parent]) steps.unshift(node);
  return steps;
}

function verdict(run, tree) {
  const unique = tree.nodes.reduce((sum, node) => sum + node.tokens, run.promptTokens);
  const leaves = tree.nodes.filter((node) => node.children.length === 0);
  const apart = leaves.reduce((sum, node) => sum + run.promptTokens + node.start + node.tokens, 0);
  const facts = [
    ["answer", `${run.answer ?? "none"} (${run.verdict})`],
    ["gold", run.gold ?? "unknown"],
    ["steps", String(tree.nodes.length)],
    ["tokens in the tree", `${unique.toLocaleString("en")}, ${(apart / Math.max(1, unique)).toFixed(1)}× less than apart`],
    ["policy computed / reused", `${run.computed.toLocaleString("en")} / ${run.reused.toLocaleString("en")}`],
    ["PRM computed / reused", `${run.prmComputed.toLocaleString("en")} / ${run.prmReused.toLocaleString("en")}`],
    ["seconds", run.seconds.toFixed(2)],
  ];
  return facts.map(([name, value]) => {
    const span = make("span", "", `${name} `);
    span.append(make("b", "", value));
    return span;
  });
}

function paint(run, tree) {
  const visible = tree.nodes.filter((node) => state.pruned || node.kept);
  const seen = new Set(visible);
  const childrenOf = (node) => node.children.filter((child) => seen.has(child));
  const leaves = visible.filter((node) => childrenOf(node).length === 0);
  const pitch = leaves.length <= 30 ? 20 : leaves.length <= 100 ? 16 : leaves.length <= 250 ? 12 : 7;
  leaves.forEach((node, row) => { node.y = 16 + row * pitch; });
  for (const node of [...visible].reverse()) {
    const below = childrenOf(node);
    if (below.length) node.y = (below[0].y + below[below.length - 1].y) / 2;
  }
  const longest = Math.max(1, ...visible.map((node) => node.start + node.tokens));
  const deepest = Math.max(1, ...visible.map((node) => node.depth));
  const gap = Math.max(8, Math.min(20, 240 / deepest));
  const room = Math.max(420, at("tree").clientWidth - 230 - gap * deepest);
  const scale = Math.max(0.6, room / longest);
  const left = (node) => 26 + node.depth * gap + node.start * scale;
  const right = (node) => left(node) + Math.max(3, node.tokens * scale);
  const width = Math.max(...visible.map(right), 100) + 170;
  const height = 32 + leaves.length * pitch;
  const picture = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "search tree" });
  const roots = tree.roots.filter((node) => seen.has(node));
  const rootY = roots.length ? (roots[0].y + roots[roots.length - 1].y) / 2 : 16;
  const links = draw("g", {}), bars = draw("g", {});
  for (const node of [...visible].sort((a, b) => a.best - b.best)) {
    const parent = tree.nodes[node.parent];
    const from = parent ? [right(parent), parent.y] : [18, rootY];
    const bend = from[0] + (left(node) - from[0]) / 2;
    node.link = draw("path", { class: `link${node.best ? " best" : ""}`, d: `M${from[0]} ${from[1]}H${bend}V${node.y}H${left(node)}` });
    links.append(node.link);
    bars.append(bar(run, tree, node, left(node), right(node), pitch), ...ending(node, right(node), childrenOf(node).length === 0, pitch));
  }
  picture.append(links, bars, draw("circle", { class: "root", cx: 14, cy: rootY, r: 5 }));
  return picture;
}

function bar(run, tree, node, x0, x1, pitch) {
  const thick = Math.min(13, pitch - 2);
  const names = ["step", node.score === null ? "none" : "", node.kept ? "" : "gone", node.best ? "best" : ""];
  const shape = draw("rect", { class: names.join(" "), x: x0, y: node.y - thick / 2, width: Math.max(2, x1 - x0), height: thick, rx: 3 });
  if (node.score !== null) shape.setAttribute("fill", colour(node.score));
  shape.addEventListener("mouseenter", () => light(tree, node, true));
  shape.addEventListener("mousemove", (event) => tip(event, node));
  shape.addEventListener("mouseleave", () => { light(tree, node, false); at("tip").hidden = true; });
  shape.addEventListener("click", () => describe(run, tree, node.id));
  node.shape = shape;
  return shape;
}

function ending(node, x, isLeaf, pitch) {
  if (!isLeaf || pitch < 10) return [];
  const solution = node.solution;
  let text = "", kind = "";
  if (solution && solution.complete) {
    const mark = solution.correct === true ? "✓" : solution.correct === false ? "✗" : "?";
    kind = outcome(solution.correct);
    text = `${node.best ? "★ " : ""}${mark} ${solution.answer ?? "no answer"}`;
  } else if (solution) {
    text = `… ${node.finish}`;
  } else {
    text = LIVE.has(node.finish) || node.finish === "eos" ? "⊘" : `… ${node.finish}`;
  }
  if (text.length > 24) text = `${text.slice(0, 23)}…`;
  return [draw("text", { class: `${kind} ${node.best ? "best" : ""}`, x: x + 7, y: node.y }, text)];
}

function light(tree, node, on) {
  for (const step of lineage(tree.nodes, node.id)) {
    step.shape.classList.toggle("lit", on);
    step.link.classList.toggle("lit", on);
  }
}

function tip(event, node) {
  const box = at("tip");
  const score = node.score === null ? "not scored" : `score ${node.score.toFixed(3)}`;
  const logprob = node.logprob === null ? "" : ` · logprob ${node.logprob.toFixed(2)}`;
  const text = node.text.length > 500 ? `${node.text.slice(0, 500)}…` : node.text;
  box.textContent = `${score} · ${node.tokens} tokens · ${node.finish}${logprob}\n\n${text.trim()}`;
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  box.style.top = `${Math.max(8, Math.min(event.clientY + 16, innerHeight - height - 8))}px`;
}

function describe(run, tree, id) {
  const panel = at("solution");
  if (id === null || !tree.nodes[id]) {
    panel.replaceChildren(make("p", "note", "Nothing was chosen. Click a step to read it."));
    return;
  }
  const last = tree.nodes[id];
  const path = lineage(tree.nodes, id).map((node) => node.child).join(".");
  const agg = last.solution && last.solution.agg !== null ? `, aggregated score ${last.solution.agg.toFixed(3)}` : "";
  const title = last.solution && last.solution.number === run.chosen ? "Chosen solution" : last.solution ? "Solution" : "Partial solution";
  const rows = lineage(tree.nodes, id).map((node) => {
    const row = make("div", "step-row");
    const chip = make("div", "chip", node.score === null ? "–" : node.score.toFixed(2));
    if (node.score !== null) chip.style.background = colour(node.score);
    row.append(chip, make("div", "text", node.text.replace(/\s+$/, "")), make("div", "cost", `${node.tokens} tokens · ${node.finish}`));
    return row;
  });
  panel.replaceChildren(make("h3", "", `${title} ${path}${agg}`), ...rows);
}

// --- controls

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
}

function move(step) {
  const visible = index.problems.filter(shown);
  const place = visible.indexOf(state.problem) + step;
  if (visible[place]) {
    choose(visible[place], state.strategy);
    at("problems").querySelector(".on")?.scrollIntoView({ block: "nearest" });
  }
}

function address() {
  try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; } // a damaged bookmark is none
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
at("theme").addEventListener("click", () => setTheme(!document.documentElement.classList.contains("dark")));
at("ramp").style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(colour).join(",")})`;
at("filter").addEventListener("change", (event) => { state.filter = event.target.value; listProblems(); });
at("pruned").addEventListener("change", (event) => { state.pruned = event.target.checked; choose(state.problem, state.strategy); });
at("problems").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (step) { event.preventDefault(); move(step); }
});
const [wanted, strategy] = address().split("/");
if (index.problems.length) {
  choose(index.problems[Number(wanted)] ?? index.problems[0], index.strategies.includes(strategy) ? strategy : state.strategy);
}
