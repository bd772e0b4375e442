"use strict";
// The operations page. It reads /console/data and writes nothing; whatever it shows is text, never markup.

const EVERY_MS = 5000;
const POINTS = 120;
const ROLES = ["gateway", "router", "pusher", "standalone"];
const CARRIERS = ["websocket", "quic", "webtransport"];
const RATES = [
  ["Accepted", 'chappe_gateway_outcomes_total{outcome="accepted"}'],
  ["Delivered", "chappe_gateway_delivered_total"],
  ["Attached", "chappe_gateway_attached_total"],
  ["Resumed", "chappe_gateway_resumed_total"],
  ["Wakes", "chappe_pusher_wakes_total"],
  ["Sockets refused", "chappe_gateway_refused_total"],
  ["Limits hit", "chappe_gateway_limited_total"],
  ["Closed by gateways", "chappe_gateway_closed_total"],
  ["News by probe", "chappe_gateway_probe_news_total"],
];
const MEANS = [
  ["Submit", "chappe_gateway_submit_seconds"],
  ["Delivery to attached devices", "chappe_gateway_deliver_seconds"],
  ["Attach", "chappe_gateway_attach_seconds"],
  ["Append", "chappe_router_append_seconds"],
  ["First wake", "chappe_pusher_wake_seconds"],
];
const QUEUES = [
  ["gateway", "Sessions", "chappe_gateway_sessions", "chappe_gateway_sessions_max"],
  ["gateway", "Handshakes", "chappe_gateway_handshakes"],
  ["gateway", "Submits waiting", "chappe_gateway_submit_entries"],
  ["gateway", "Doorbells waiting", "chappe_gateway_doorbell_queue"],
  ["router", "Entries under way", "chappe_router_queue_entries", "chappe_router_queue_entries_max"],
  ["router", "Appends under way", "chappe_router_appends_in_flight"],
  ["pusher", "Wakes due", 'chappe_pusher_queue{state="due"}', "chappe_pusher_queue_max"],
  ["pusher", "Looks waiting", "chappe_pusher_looks_waiting"],
  ["", "Open files", "process_open_fds", "process_max_fds"],
];

const byId = (id) => document.getElementById(id);
const history = new Map(); // rate's title -> last points
let before = null; // the data of the look before
let data = null;
let heardAt = 0;
let trouble = "";

function make(tag, text, kind) {
  const one = document.createElement(tag);
  if (text !== undefined) one.textContent = text;
  if (kind) one.className = kind;
  return one;
}

function drawn(tag, attributes) {
  const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  return one;
}

function number(value) {
  if (value === undefined || value === null || Number.isNaN(value)) return "–";
  if (value !== 0 && Math.abs(value) < 10 && !Number.isInteger(value)) return value.toFixed(value < 1 ? 2 : 1);
  return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
}

function seconds(value) {
  if (value === null) return "–";
  if (value < 0.0995) return `${(value * 1000).toFixed(1)} ms`;
  return value < 120 ? `${value.toFixed(1)} s` : span(value * 1000);
}

function span(ms) {
  const whole = Math.max(0, Math.round(ms / 1000));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  return whole < 172800 ? `${Math.round(whole / 3600)} h` : `${Math.round(whole / 86400)} days`;
}

const bytes = (value) => (value === undefined ? "–" : `${number(value / 1048576)} MiB`);

// All series of a metric, whatever the labels; with labels in the name, that one.
function sum(member, name) {
  if (member.series[name] !== undefined) return member.series[name];
  let total = 0;
  for (const [key, value] of Object.entries(member.series)) {
    if (key.startsWith(`${name}{`)) total += value;
  }
  return total;
}

function worked(member, role) {
  return role === "" || member.role === role || member.role === "standalone";
}

// How much a counter grew between the last two looks, over all members that were there both times; a restart begins at 0.
function growth(name) {
  if (!before || data.at_ms <= before.at_ms) return null;
  let total = 0;
  for (const member of data.members) {
    const old = before.members.find((one) => one.instance === member.instance);
    if (old) total += Math.max(0, sum(member, name) - sum(old, name));
  }
  return total;
}

function rate(name) {
  const grown = growth(name);
  return grown === null ? null : (grown * 1000) / (data.at_ms - before.at_ms);
}

function mean(name) {
  const count = growth(`${name}_count`);
  return count ? growth(`${name}_sum`) / count : null;
}

function judge() {
  const bad = [];
  const odd = [];
  const versions = new Map();
  for (const member of data.members) {
    if (member.draining) odd.push(`${member.name} (${member.role}) drains: ${number(member.series.chappe_gateway_sessions || 0)} sessions left`);
    else if (!member.ready) bad.push(`${member.name} (${member.role}) is not ready`);
    if (member.series.chappe_bus_connected === 0) bad.push(`${member.name} (${member.role}) has no connection to NATS`);
    if (member.series.chappe_store_up === 0) bad.push(`${member.name} (${member.role}) does not reach the database`);
    for (const event of ["lost", "head_back", "cursor_ahead"]) {
      const many = member.series[`chappe_log_events_total{event="${event}"}`];
      if (many) bad.push(`${member.name} (${member.role}) has met ${event} ${number(many)} times since it started: see ChappeSlotsLost among the alerts`);
    }
    for (const [role, title, name, ceiling] of QUEUES) {
      if (ceiling && worked(member, role) && member.series[ceiling] && sum(member, name) / member.series[ceiling] > 0.8) {
        odd.push(`${member.name} (${member.role}): ${title.toLowerCase()} at ${Math.round((100 * sum(member, name)) / member.series[ceiling])} %`);
      }
    }
    const ends = member.series.chappe_tls_not_after_seconds;
    if (ends && ends * 1000 - data.at_ms < 14 * 86400000) odd.push(`${member.name}: its certificate ends in ${span(ends * 1000 - data.at_ms)}`);
    if (!versions.has(member.role)) versions.set(member.role, new Set());
    versions.get(member.role).add(member.version);
  }
  for (const one of data.silent) bad.push(`${one.name} (${one.role}) has been silent for ${span(data.at_ms - one.last_heard_ms)}`);
  for (const [role, some] of versions) if (some.size > 1) odd.push(`${role}: versions ${[...some].sort().join(" and ")} beside each other`);
  const serving = (role) => data.members.some((one) => one.role === role && one.ready);
  if (!serving("standalone")) for (const role of ["gateway", "router"]) if (!serving(role)) bad.push(`No ${role} serves`);
  return { bad, odd };
}

function row(cells, tag) {
  const line = make("tr");
  for (const cell of cells) {
    const [content, kind] = Array.isArray(cell) ? cell : [cell, ""];
    const one = make(tag || "td", undefined, kind);
    if (tag === "th") one.scope = "col";
    one.append(content instanceof Node ? content : String(content));
    line.append(one);
  }
  return line;
}

function fill(id, heads, rows, empty) {
  const table = byId(id);
  if (!rows.length) return table.replaceChildren(make("caption", empty));
  const head = make("thead");
  head.append(row(heads, "th"));
  const body = make("tbody");
  body.append(...rows.map((cells) => row(cells)));
  table.replaceChildren(head, body);
}

function bar(share) {
  const svg = drawn("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": `${Math.round(share * 100)} %` });
  svg.append(drawn("rect", { width: 100, height: 10, rx: 2 }), drawn("rect", { width: Math.max(0, Math.min(100, share * 100)), height: 10, rx: 2 }));
  return svg;
}

function spark(points) {
  const known = points.filter((one) => one !== null);
  const top = Math.max(...known, 1e-9);
  const steps = points.map((value, index) => `${(index * 100) / (POINTS - 1)},${value === null ? 27 : 27 - (value / top) * 25}`);
  const svg = drawn("svg", { class: "spark", viewBox: "0 0 100 28", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (known.length > 1) svg.append(drawn("path", { d: `M${steps.join("L")}` }));
  return svg;
}

function state(member) {
  if (member.draining) return make("span", "drains", "word");
  return member.ready ? make("span", "ready", "word good") : make("span", "not ready", "word bad");
}

const NUMBER = "number";

function show() {
  const { bad, odd } = judge();
  const verdict = byId("verdict");
  verdict.className = bad.length ? "bad" : odd.length ? "odd" : "good";
  verdict.querySelector("h2").textContent = bad.length ? "Something is wrong" : odd.length ? "It works; look at this" : "All is well";
  verdict.querySelector("ul").replaceChildren(...[...bad, ...odd].slice(0, 20).map((line) => make("li", line)));
  const gateways = data.members.filter((one) => worked(one, "gateway"));
  const total = gateways.reduce((all, one) => all + (one.series.chappe_gateway_sessions || 0), 0);
  const shown = [["Sessions", total], ["Accepted / s", rate(RATES[0][1])], ["Delivered / s", rate(RATES[1][1])], ["Wakes / s", rate(RATES[4][1])]];
  byId("now").replaceChildren(...shown.map(([title, value]) => {
    const points = history.get(title) || [];
    points.push(value);
    history.set(title, points.slice(-POINTS));
    const card = make("div");
    card.append(make("div", title, "what"), make("div", number(value), "much"), spark(points));
    return card;
  }));
  const order = (one) => `${ROLES.indexOf(one.role)} ${one.name}`;
  const sorted = [...data.members].sort((one, other) => order(one).localeCompare(order(other), "en", { numeric: true }));
  fill("members", ["Role", "Name", "State", "Version", ["Up", NUMBER], ["Memory", NUMBER], ["CPU", NUMBER]], sorted.map((one) => {
    const old = before && before.members.find((each) => each.instance === one.instance);
    const cpu = old && data.at_ms > before.at_ms ? ((one.series.process_cpu_seconds_total - old.series.process_cpu_seconds_total) * 1e5) / (data.at_ms - before.at_ms) : NaN;
    return [one.role, one.name, state(one), one.version, [span(data.at_ms - one.started_ms), NUMBER], [bytes(one.series.process_resident_memory_bytes), NUMBER],
      [Number.isNaN(cpu) ? "–" : `${number(cpu)} %`, NUMBER]];
  }), "nobody");
  const most = Math.max(1, ...gateways.map((one) => one.series.chappe_gateway_sessions || 0));
  fill("sessions", ["Gateway", ["Sessions", NUMBER], "", ...CARRIERS.map((one) => [`welcomed: ${one}`, NUMBER]), "Drain"], sorted.filter((one) => worked(one, "gateway")).map((one) => {
    const many = one.series.chappe_gateway_sessions || 0;
    const old = before && before.members.find((each) => each.instance === one.instance);
    const left = one.draining && old ? ((old.series.chappe_gateway_sessions - many) * 1000) / (data.at_ms - before.at_ms) : 0;
    const drain = !one.draining ? "" : left > 0 ? `${number(left)} / s, about ${span((many / left) * 1000)} left` : "begins";
    return [one.name, [number(many), NUMBER], bar(many / most), ...CARRIERS.map((carrier) => [number(one.series[`chappe_gateway_welcomed_total{carrier="${carrier}"}`] || 0), NUMBER]), drain];
  }), "no gateway");
  const rates = RATES.map(([title, name]) => [title, [rate(name) === null ? "–" : `${number(rate(name))} / s`, NUMBER]]);
  const means = MEANS.map(([title, name]) => [title, [seconds(mean(name)), NUMBER]]);
  fill("rates", ["", ["Last look", NUMBER]], rates, "");
  fill("means", ["Mean of the last look", ""], means, "");
  const queues = [];
  for (const [role, title, name, ceiling] of QUEUES) {
    for (const one of sorted.filter((each) => worked(each, role) && each.series[ceiling || name] !== undefined)) {
      const most = ceiling ? one.series[ceiling] : 0;
      if (role === "" && sum(one, name) / most < 0.5) continue;
      queues.push([title, one.name, [number(sum(one, name)), NUMBER], [most ? number(most) : "", NUMBER], most ? bar(sum(one, name) / most) : ""]);
    }
  }
  fill("queues", ["Queue", "Process", ["Now", NUMBER], ["At most", NUMBER], ""], queues, "no queue");
  const up = (value) => (value === undefined ? "" : value === 1 ? make("span", "up", "word good") : make("span", "away", "word bad"));
  const answer = (one) => {
    const [good, all] = ['chappe_presence_calls_total{call="lease",outcome="ok"}', 'chappe_presence_calls_total'].map((name) => sum(one, name));
    const failed = Object.entries(one.series).filter(([key]) => key.startsWith("chappe_presence_calls_total{") && !key.includes('outcome="ok"')).reduce((many, [, value]) => many + value, 0);
    return all === 0 && good === 0 ? "" : `${number(failed)} of ${number(all)} calls failed since the start`;
  };
  fill("parts", ["Process", "NATS", "Database", "Redis", "Wake hints"], sorted.filter((one) => one.role !== "standalone").map((one) => [
    one.name, up(one.series.chappe_bus_connected), up(one.series.chappe_store_up), answer(one), up(one.series.chappe_bus_wake_stream_up ?? one.series.chappe_bus_wake_jobs_up)]),
  "None: this server holds all in itself.");
  const alarms = data.members.flatMap((one) => one.alarms.map((alarm) => ({ ...alarm, name: one.name }))).sort((one, other) => other.at_ms - one.at_ms);
  fill("alarms", ["When", "Process", "Level", "What"], alarms.slice(0, 50).map((one) => [
    `${span(data.at_ms - one.at_ms)} ago`, one.name, make("span", one.level, one.level === "error" ? "word bad" : "word"), [one.times > 1 ? `${one.text} (${one.times} times)` : one.text, "text"]]),
  "Nothing was said at level warn or above.");
}

function age() {
  const asked = byId("asked");
  if (!data) {
    asked.textContent = trouble;
    return;
  }
  const old = Date.now() - heardAt;
  asked.textContent = `seen by ${data.asked}, ${span(old)} ago; ${number(data.members.length)} answered within ${data.waited_ms} ms${trouble ? `; ${trouble}` : ""}`;
  if (old > 3 * EVERY_MS) {
    const verdict = byId("verdict");
    verdict.className = "bad";
    verdict.querySelector("h2").textContent = `No news for ${span(old)}: what stands below is old`;
  }
}

async function look() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/console/data", { cache: "no-store", signal: AbortSignal.timeout(EVERY_MS) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const fresh = await answer.json();
      if (!data || fresh.at_ms !== data.at_ms) [before, data] = [data, fresh];
      [heardAt, trouble] = [Date.now(), ""];
      show();
    } catch (error) {
      trouble = `the process does not answer (${error.message})`;
    }
  }
  age();
}

look();
setInterval(look, EVERY_MS);
setInterval(age, 1000);
document.addEventListener("visibilitychange", look);
