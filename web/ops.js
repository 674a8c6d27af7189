// The operator's page: the board with its deadlines, who is online, who waits, payouts, figures.

import { api, apiIfThere } from "./client.js";
import {
  $,
  List,
  asPerson,
  button,
  carefulButton,
  clock,
  complain,
  countdown,
  el,
  fill,
  moment,
  money,
  onSubmit,
  table,
  tell,
  words,
} from "./page.js";
import { bars, columns } from "./plot.js";

const STAYS_MS = 4000; // so long one that ended is still shown
const LOOK_AGAIN_MS = 15_000;
const LIVE = new Set(["scheduled", "pending", "accepted"]);

asPerson("admin", (live) => {
  const board = new Board();
  live.addEventListener("welcome", ({ detail }) => {
    live.ask({ type: "board.watch" }).catch(complain);
    showOnline(live, detail.snapshot.nodes).catch(complain);
  });
  live.addEventListener("frame", ({ detail }) => {
    if (detail.type === "board") board.begin(detail);
    if (detail.type === "board.event") board.take(detail.request);
  });
  const look = () => Promise.all([showMechanics(), showWorkshops(), showPayouts()]).catch(complain);
  look();
  showFigures().catch(complain);
  setInterval(() => document.hidden || look(), LOOK_AGAIN_MS);
});

// --- the board ----------------------------------------------------------------------------------

class Board {
  #requests = new Map();
  #more = false;
  #list = new List($("board"), ({ request_id }) => request_id, boardRow);

  begin({ requests, more_requests }) {
    this.#requests = new Map(requests.map((request) => [request.request_id, request]));
    this.#more = more_requests;
    this.#show();
  }

  take(request) {
    const known = this.#requests.get(request.request_id);
    if (known && known.version > request.version) return;
    this.#requests.set(request.request_id, request);
    if (!LIVE.has(request.status)) {
      setTimeout(() => {
        if (this.#requests.get(request.request_id) !== request) return;
        this.#requests.delete(request.request_id);
        this.#show();
      }, STAYS_MS);
    }
    this.#show();
  }

  #show() {
    const shown = [...this.#requests.values()].sort((one, other) =>
      one.created_at.localeCompare(other.created_at),
    );
    this.#list.show(shown);
    const count = shown.filter(({ status }) => LIVE.has(status)).length;
    fill($("count"), `${count}${this.#more ? " and more" : ""}`);
    $("no-requests").hidden = shown.length > 0;
  }
}

function boardRow(first) {
  const node = el("tr", { "data-request": first.request_id });
  let shown = "";

  function update(request) {
    const now = JSON.stringify(request);
    if (now === shown) return;
    const isNews = shown !== "";
    shown = now;
    node.className = LIVE.has(request.status) ? "" : "over";
    fill(
      node,
      cells(request).map((cell) => el("td", {}, cell)),
    );
    if (isNews)
      node.animate?.([{ backgroundColor: "#ffe58a" }, { backgroundColor: "transparent" }], 1200);
  }

  return { node, update };
}

function cells(request) {
  const flags = [request.urgent && "urgent", request.is_specialist && "specialist"].filter(Boolean);
  return [
    request.customer_name,
    [
      `${request.plan_code}, ${words(request.routing_type)}`,
      flags.length > 0 && el("small", {}, ` ${flags.join(", ")}`),
    ],
    [
      request.stage ? words(request.stage) : words(request.session_status),
      el("small", {}, ` round ${request.generation}`),
    ],
    nextDeadline(request),
    `${request.mechanics_notified} / ${request.mechanics_online}`,
    request.mechanic?.name ?? "–",
    request.message,
    el(
      "span",
      { class: "actions" },
      button("Explain", () => explain(request.request_id)),
      request.status === "pending" && button("Assign", () => showAssign(request)),
    ),
  ];
}

/** What happens next by the clock, and when. */
function nextDeadline(request) {
  const names = {
    opens_at: "opens",
    next_attempt_at: "asked again",
    stage_ends_at: "stage ends",
    join_by: "join by",
    ends_at: "ends",
    expires_at: "expires",
  };
  const due = Object.keys(names).filter((name) => request[name]);
  const first = due.sort((one, other) => request[one].localeCompare(request[other]))[0];
  if (!LIVE.has(request.status) || !first) return "–";
  return [countdown(request[first]), el("small", {}, ` ${names[first]}`)];
}

async function showAssign({ request_id, customer_name }) {
  const { mechanics } = await api("GET", "/api/admin/mechanics?status=approved&limit=100");
  const form = el(
    "form",
    {},
    el("h2", {}, `Assign ${customer_name}'s request by hand`),
    el(
      "label",
      {},
      "Mechanic ",
      el(
        "select",
        { name: "mechanic_id" },
        mechanics.map((one) =>
          el(
            "option",
            { value: one.mechanic_id },
            one.name + (one.workshop_name ? `, ${one.workshop_name}` : ""),
          ),
        ),
      ),
    ),
    el(
      "p",
      { class: "actions" },
      el("button", { class: "main" }, "Assign"),
      button("Close", closePanel),
    ),
  );
  onSubmit(form, async ({ mechanic_id }) => {
    await api("POST", `/api/admin/requests/${request_id}/assign`, { mechanic_id });
    closePanel();
    tell("Assigned.", "good");
  });
  openPanel(form);
}

async function explain(requestId) {
  const told = await api("GET", `/api/admin/requests/${requestId}/explain?limit=50`);
  const yes = (is) => (is ? "yes" : "no");
  openPanel(
    el("h2", {}, "Why it went as it did"),
    el("p", {}, `${words(told.strategy)} · ${told.status} · ${told.message}`),
    table(
      "Steps",
      ["Step", "At", "After ms"],
      told.waterfall.map((one) => [words(one.step), one.at && second(one.at), one.after_ms]),
      "No steps.",
    ),
    el("h3", {}, `Candidates (${told.candidates_total})`),
    table(
      "Candidates",
      ["Round", "Name", "Eligible", "Sent", "Seen", "Answer", "Why not"],
      told.candidates.map((one) => [
        one.generation,
        one.name,
        yes(one.eligible),
        one.sent
          .map(({ stage, score, because }) => `${words(stage)} ${score ?? ""} ${because ?? ""}`)
          .join("; ") || "–",
        one.seen_at && second(one.seen_at),
        one.answer && words(one.answer),
        [one.reason && words(one.reason), ...one.ruled_out.map(({ because }) => because)]
          .filter(Boolean)
          .join("; ") || "–",
      ]),
      "Nobody was looked at.",
    ),
    el("h3", {}, "History"),
    table(
      "History",
      ["At", "What", "Who", "Detail"],
      told.history.map((one) => [second(one.at), words(one.type), one.name, one.detail]),
      "Nothing.",
    ),
    button("Close", closePanel),
  );
}

const second = (at) => clock(at, { second: "2-digit" });

function openPanel(...children) {
  fill($("explain"), ...children);
  $("explain").hidden = false;
  $("explain").scrollIntoView({ behavior: "smooth", block: "nearest" });
}

function closePanel() {
  $("explain").hidden = true;
}

// --- who is there and who waits -----------------------------------------------------------------

async function showOnline(live, nodes) {
  const { workshops } = await api("GET", "/api/workshops/directory?limit=100");
  fill(
    $("online"),
    table(
      "Nodes",
      ["Node", "Connected"],
      nodes.map(({ node_id, clients }) => [node_id.slice(0, 8), clients]),
      "No node is known.",
    ),
    table(
      "Workshops",
      ["Workshop", "Free", "Rating"],
      workshops.map((one) => [
        one.workshop_name,
        `${one.available_mechanics} of ${one.total_mechanics}`,
        one.avg_rating?.toFixed(1),
      ]),
      "No workshop has anybody free.",
    ),
    button("Look again", () => live.reconnect()),
  );
}

async function showMechanics() {
  const { mechanics, total } = await api("GET", "/api/admin/mechanics?status=pending&limit=20");
  const decide =
    (verb, { mechanic_id }) =>
    async () => {
      await api("POST", `/api/admin/mechanics/${mechanic_id}/${verb}`);
      await showMechanics();
    };
  fill(
    $("mechanics"),
    table(
      "Mechanics waiting",
      ["Name", "E-mail", ""],
      mechanics.map((one) => [
        one.name,
        one.email,
        el(
          "span",
          { class: "actions" },
          button("Approve", decide("approve", one), "main"),
          button("Reject", decide("reject", one)),
        ),
      ]),
      "Nobody waits.",
    ),
    total > mechanics.length && el("p", { class: "quiet" }, `${total} in all`),
  );
}

async function showWorkshops() {
  const { workshops } = await api("GET", "/api/admin/workshops?status=pending&limit=20");
  const approve =
    ({ workshop_id }) =>
    async () => {
      await api("POST", `/api/admin/workshops/${workshop_id}/approve`);
      await showWorkshops();
    };
  fill(
    $("workshops"),
    table(
      "Workshops waiting",
      ["Name", "E-mail", ""],
      workshops.map((one) => [
        one.workshop_name,
        one.workshop_email,
        button("Approve", approve(one), "main"),
      ]),
      "No workshop waits.",
    ),
  );
}

// --- money and figures --------------------------------------------------------------------------

async function showPayouts() {
  const { payouts } = await api("GET", "/api/admin/payouts?limit=10");
  const run = async () => {
    const { made, skipped } = await api("POST", "/api/admin/payouts/run");
    tell(`${made.length} payouts made, ${skipped.length} left out.`, "good");
    for (const { payee, reason } of skipped.slice(0, 5)) tell(`${payee.name}: ${words(reason)}`);
    await showPayouts();
  };
  fill(
    $("payouts"),
    table(
      "Payouts",
      ["When", "To", "Amount", "State", ""],
      payouts.map((one) => [
        moment(one.created_at),
        one.payee.name,
        money(one.amount_cents, one.currency),
        words(one.status),
        one.note,
      ]),
      "Nothing was paid out yet.",
    ),
    el("p", { class: "actions" }, carefulButton("Pay out now", "Pay everybody what is due?", run)),
  );
}

async function showFigures() {
  const told = await apiIfThere("GET", "/api/admin/analytics?by=day");
  $("kpis").hidden = told === null;
  if (told === null) return;
  const { total, targets, groups, workshops } = told;
  const rate = (value) => (value === null ? "–" : `${Math.round(value * 100)} %`);
  const rates = [
    [
      "favourite accepts",
      total.favorite_acceptance_rate,
      `wanted > ${rate(targets.favorite_acceptance_rate_above)}`,
    ],
    ["falls back", total.fallback_rate, `wanted < ${rate(targets.fallback_rate_below)}`],
    ["books again", total.rebooking_rate, `wanted > ${rate(targets.rebooking_rate_above)}`],
  ];
  const byDay = groups.map(({ day, requests }) => ({ name: day, value: requests }));
  fill(
    $("figures"),
    el(
      "p",
      {},
      `${total.requests} requests of ${total.customers} customers: ${total.accepted} accepted, ` +
        `${total.completed} completed, ${total.cancelled} cancelled, ${total.expired} expired.`,
    ),
    el(
      "div",
      { class: "columns" },
      figure(
        "Rates",
        bars(
          "Rates",
          rates.map(([name, value, wanted]) => ({
            name,
            value,
            text: `${rate(value)} (${wanted})`,
          })),
          1,
        ),
      ),
      total.time_to_start.length > 0 &&
        figure(
          "From booking to start, half within",
          bars(
            "Seconds to start",
            total.time_to_start.map(
              ({ routing_type: name, p50_seconds: value, p90_seconds: most }) => ({
                name: words(name),
                value,
                text: `${value.toFixed(1)} s (90 %: ${most.toFixed(1)} s)`,
              }),
            ),
          ),
        ),
      byDay.length > 0 && figure("Requests a day", columns("Requests a day", byDay)),
    ),
    table(
      "Workshops",
      ["Workshop", "Asked for", "Served", "Both", "Completed"],
      workshops.map((one) => [
        one.workshop_name,
        one.preferred,
        one.served,
        one.preferred_and_served,
        one.completed,
      ]),
      "No workshop had to do with any.",
    ),
    button("Look again", showFigures),
  );
}

const figure = (title, plot) => el("figure", {}, el("figcaption", {}, title), plot);
