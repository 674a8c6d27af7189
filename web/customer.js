// The customer's page: book, sign, pay, watch, talk, rate, book again.

import { Failure, api, apiIfThere } from "./client.js";
import {
  $,
  List,
  asPerson,
  button,
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
import { lives, sessionPart } from "./session.js";

const WAIVER_VERSION = "2026-1";
const WAIVER =
  "What a mechanic tells you by chat or video is advice from afar. She cannot see or test your " +
  "car, and you decide what you do with it. Do not drive a car that may not be safe.";
const INTAKE_KEY = "dispatch.intake"; // what waits for its waiver
const AFTER_KEY = "dispatch.after"; // the session that ended last, until it is put away
const LOOK_AGAIN_MS = 10_000;
const STAGES = {
  priority: "asking your favourite",
  preferred: "asking your workshop first",
  open: "asking everyone",
};

asPerson("customer", (live, who) => {
  const bookings = new Bookings(live, who);
  live.addEventListener("welcome", ({ detail }) => bookings.begin(detail.snapshot));
  live.addEventListener("frame", ({ detail }) => bookings.take(detail));
  bookForm(live);
  showMoney();
  if (location.pathname === "/intake/waiver") {
    const asked = new URLSearchParams(location.search);
    showWaiver(
      Object.fromEntries(["intake_id", "plan", "session"].map((key) => [key, asked.get(key)])),
    );
  }
  live.addEventListener("frame", ({ detail }) => {
    if (detail.type !== "payment.status") return;
    tell(detail.message);
    showMoney();
  });
});

// --- what is booked -----------------------------------------------------------------------------

class Bookings {
  #live;
  #known = new Map(); // session_id -> {sessionId, request, session}
  #list;
  #parts = new Map();

  constructor(live, who) {
    this.#live = live;
    this.#list = new List(
      $("bookings"),
      ({ sessionId }) => sessionId,
      ({ sessionId }) => {
        const part = bookingPart(live, who, sessionId, () => this.#putAway(sessionId));
        this.#parts.set(sessionId, part);
        return part;
      },
    );
    showAfter(JSON.parse(sessionStorage.getItem(AFTER_KEY)));
  }

  /** The snapshot is the truth; what is gone from it has ended while we were away. */
  begin({ requests, sessions }) {
    const missed = new Map([...this.#known].filter(([, { ended }]) => !ended));
    for (const request of requests) this.#learn(request.session_id, { request });
    for (const session of sessions) this.#learn(session.session_id, { session });
    for (const one of [...requests, ...sessions]) missed.delete(one.session_id);
    for (const [sessionId, { request }] of missed)
      this.#readAgain(sessionId, request).catch(complain);
    this.#show();
  }

  take(frame) {
    if (frame.type === "request.status") this.#learn(frame.session_id, { request: frame });
    else if (frame.type === "session.status") this.#learn(frame.session_id, { session: frame });
    else if (frame.type === "session.warning") this.#parts.get(frame.session_id)?.warn(frame);
    else return;
    this.#show();
  }

  async #readAgain(sessionId, request) {
    this.#learn(sessionId, { session: await api("GET", `/api/sessions/${sessionId}`) });
    if (request)
      this.#learn(sessionId, { request: await api("GET", `/api/requests/${request.request_id}`) });
    this.#show();
  }

  #learn(sessionId, news) {
    const booking = { sessionId, ...this.#known.get(sessionId), ...news };
    const { request, session } = booking;
    booking.ended =
      (session && !lives(session)) || ["cancelled", "expired"].includes(request?.status);
    this.#known.set(sessionId, booking);
    if (session?.status === "completed") this.#complete(booking);
  }

  #complete({ sessionId, request }) {
    const after = { session_id: sessionId, mechanic: request?.mechanic ?? null };
    sessionStorage.setItem(AFTER_KEY, JSON.stringify(after));
    showAfter(after);
    dispatchEvent(new Event("favorites"));
  }

  #putAway(sessionId) {
    this.#known.delete(sessionId);
    this.#show();
  }

  #show() {
    const shown = [...this.#known.values()].filter(
      ({ session }) => session?.status !== "completed",
    );
    this.#list.show(shown);
    const isBusy = shown.some(({ request, ended }) => !ended && request?.status !== "scheduled");
    $("book").hidden = isBusy || !$("waiver").hidden;
  }
}

/** A booking from the payment to the end of its session. */
function bookingPart(live, who, sessionId, putAway) {
  const message = el("p", { class: "message", role: "status" });
  const stage = el("p", { class: "quiet stage" });
  const mechanic = el("p", { class: "mechanic" });
  const ways = el("div", { class: "actions" });
  const session = sessionPart(live, who, sessionId, { join });
  const node = el(
    "article",
    { class: "card booking" },
    message,
    mechanic,
    stage,
    ways,
    session.node,
  );
  let shown = "";

  async function join() {
    try {
      await live.ask({ type: "session.join", session_id: sessionId });
    } catch (failure) {
      const intake = JSON.parse(sessionStorage.getItem(INTAKE_KEY));
      if (failure.code === "waiver_required" && intake?.session === sessionId) showWaiver(intake);
      else throw failure;
    }
  }

  function update({ request, session: state, ended }) {
    if (state) session.update(state);
    if (!request) return;
    fill(message, state?.status === "active" ? "Your session is running." : request.message);
    node.dataset.status = request.status;
    fill(
      mechanic,
      request.mechanic && [
        "Your mechanic: ",
        el("strong", {}, request.mechanic.name),
        request.mechanic.rating && ` · ${request.mechanic.rating.toFixed(1)} of 5`,
      ],
    );
    const now = JSON.stringify([
      request.status,
      request.stage,
      request.stage_ends_at,
      request.expires_at,
      request.mechanics_notified,
      request.mechanics_online,
      ended,
    ]);
    if (now === shown) return;
    shown = now;
    fill(stage, deadlines(request));
    fill(ways, ended ? button("Close", putAway) : choices(live, request));
  }

  return { node, update, warn: session.warn, gone: session.gone };
}

function deadlines(request) {
  if (request.status === "scheduled") return ["Until it opens nothing is to be done."];
  if (request.status !== "pending") return [];
  return [
    STAGES[request.stage],
    request.stage_ends_at && [", for ", countdown(request.stage_ends_at), ", then everyone"],
    ` · ${request.mechanics_notified} asked · ${request.mechanics_online} online · open for `,
    countdown(request.expires_at),
  ].flat();
}

function choices(live, { request_id, status, next_stage }) {
  if (status !== "pending" && status !== "scheduled") return [];
  const cancel = (refund_as) => () => live.ask({ type: "request.cancel", request_id, refund_as });
  return [
    next_stage &&
      button(
        "Find an available mechanic now",
        () => live.ask({ type: "request.widen", request_id }),
        "main",
      ),
    el(
      "details",
      {},
      el("summary", {}, "Cancel this booking"),
      el(
        "p",
        { class: "actions" },
        button("Cancel, money back", cancel("money")),
        button("Cancel, keep it as credits", cancel("credits")),
      ),
    ),
  ];
}

// --- booking ------------------------------------------------------------------------------------

function bookForm(live) {
  const form = $("book").querySelector("form");
  const { who, favorite, workshop, slot, wait } = form.elements;
  let watched = null;
  wait.parentElement.hidden = true;

  fillPlans().catch(complain);
  fillSlots(slot).catch(complain);
  fillFavorites(favorite).then(choose, complain);
  who.addEventListener("change", choose);
  favorite.addEventListener("change", choose);
  live.addEventListener("welcome", () => watched && watch(watched));
  live.addEventListener("frame", ({ detail }) => {
    if (detail.type !== "mechanic.presence" || detail.mechanic_id !== watched) return;
    fill($("favorite-presence"), presence(detail));
    wait.parentElement.hidden = detail.presence === "online";
  });
  addEventListener("favorites", () => fillFavorites(favorite).then(choose, complain));

  function choose() {
    const wantsWorkshop = ["hybrid", "workshop_only"].includes(who.value);
    $("workshop-field").hidden = !wantsWorkshop;
    if (wantsWorkshop) fillWorkshops(workshop).catch(complain);
    const wantsFavorite = who.value === "priority_broadcast";
    $("favorite-field").hidden = !wantsFavorite;
    const [kind, id] = favorite.value.split(" ");
    const mechanic = wantsFavorite && kind === "independent" ? id : null;
    if (mechanic === watched) return;
    wait.parentElement.hidden = mechanic === null;
    if (watched) live.send({ type: "mechanic.unwatch", mechanic_id: watched });
    watched = mechanic;
    fill($("favorite-presence"));
    if (watched) watch(watched);
  }

  function watch(mechanic_id) {
    live.send({ type: "mechanic.watch", mechanic_id });
  }

  onSubmit(form, async (values) =>
    goOn(await api("POST", "/api/intake/start", intake(values)), values.plan),
  );
}

/** What the server wants to know, of what was typed and chosen. */
function intake(values) {
  const wish = { plan: values.plan, urgent: values.urgent, is_specialist: values.is_specialist };
  if (values.vehicle) wish.vehicle = values.vehicle;
  if (values.concern) wish.concern = values.concern;
  if (values.slot) wish.slot_id = values.slot;
  if (values.credits) wish.payment_method = "credits";
  wish.routing_type = values.who;
  if (["hybrid", "workshop_only"].includes(values.who)) {
    if (!values.workshop) throw new Failure("bad_request", "Please choose a workshop.");
    wish.workshop_id = values.workshop;
  }
  if (values.who === "priority_broadcast") {
    const [kind, id] = (values.favorite ?? "").split(" ");
    if (!id)
      throw new Failure(
        "bad_request",
        "You have no favourite yet: they are offered after a session.",
      );
    if (kind === "workshop") return { ...wish, routing_type: "hybrid", workshop_id: id };
    return { ...wish, preferred_mechanic_id: id, wait_for_preferred: values.wait };
  }
  return wish;
}

const presence = ({ presence: state, available, reachable_by_push: pushed, last_seen }) => {
  if (state === "online")
    return available ? "She is online and available." : "She is online, but busy.";
  const seen = last_seen ? `, last seen ${moment(last_seen)}` : "";
  return `She is not online${seen}.${pushed ? " We can reach her by a push message." : ""}`;
};

async function fillPlans() {
  const { plans } = await api("GET", "/api/plans");
  fill(
    $("plans"),
    plans.map(({ plan, name, price_cents, currency }, index) =>
      el(
        "label",
        { class: "choice" },
        el("input", {
          type: "radio",
          name: "plan",
          value: plan,
          required: true,
          checked: index === 0,
        }),
        el("span", {}, name),
        el("strong", {}, price_cents ? money(price_cents, currency) : "free"),
      ),
    ),
  );
}

async function fillWorkshops(select) {
  const { workshops } = await api("GET", "/api/workshops/directory?limit=100");
  options(
    select,
    workshops.map((one) => [
      one.workshop_id,
      `${one.workshop_name} – ${one.available_mechanics} of ${one.total_mechanics} free` +
        (one.avg_rating ? `, ${one.avg_rating.toFixed(1)} of 5` : ""),
    ]),
    "No workshop has anybody free right now",
  );
}

async function fillSlots(select) {
  const answer = await apiIfThere("GET", "/api/slots?limit=100");
  const slots = answer?.slots ?? [];
  $("slot-field").hidden = slots.length === 0;
  options(select, [
    ["", "Now"],
    ...slots.map((one) => [
      one.slot_id,
      [moment(one.starts_at), one.workshop_name, `${one.seats_left} left`]
        .filter(Boolean)
        .join(", "),
    ]),
  ]);
}

async function fillFavorites(select) {
  const { favorites } = await api("GET", "/api/customer/favorites?limit=100");
  options(
    select,
    favorites.map((one) => [
      `${one.provider_type} ${one.provider_id}`,
      one.name + (one.most_booked ? " (most booked)" : ""),
    ]),
    "You have no favourite yet",
  );
  showFavorites(favorites);
}

function options(select, pairs, nothing) {
  const chosen = select.value;
  fill(
    select,
    pairs.map(([value, text]) => el("option", { value }, text)),
  );
  if (pairs.length === 0) fill(select, el("option", { value: "" }, nothing));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

// --- the waiver, and the way to the payment -----------------------------------------------------

/** From a stored wish to its waiver, under the address that the server names. */
function goOn({ intake_id, redirect, session_id }, plan) {
  history.pushState(null, "", redirect);
  showWaiver({ intake_id, plan, session: session_id ?? null });
}

function showWaiver(intake) {
  sessionStorage.setItem(INTAKE_KEY, JSON.stringify(intake));
  const form = el(
    "form",
    { class: "card" },
    el("h2", {}, "Before we begin"),
    el("p", {}, WAIVER),
    el(
      "label",
      {},
      "Your full name ",
      el("input", { name: "name", maxlength: "200", autocomplete: "name", required: true }),
    ),
    el(
      "label",
      { class: "box" },
      el("input", { type: "checkbox", name: "agree", required: true }),
      " I have read this and agree",
    ),
    el(
      "p",
      { class: "actions" },
      el("button", { class: "main" }, intake.session ? "Sign" : "Sign and go on to the payment"),
      button("Not now", hideWaiver),
    ),
  );
  onSubmit(form, ({ name }) => sign(intake, name));
  fill($("waiver"), form);
  $("waiver").hidden = false;
  $("book").hidden = true;
  form.querySelector("input").focus();
}

async function sign({ intake_id, plan, session }, name) {
  await api("POST", "/api/waiver/sign", { intake_id, name, version: WAIVER_VERSION });
  if (!session) {
    const query = new URLSearchParams({ plan, intake_id });
    try {
      const { url } = await api("GET", `/api/checkout/create-session?${query}`);
      location.assign(url);
      return;
    } catch (failure) {
      if (failure.code !== "nothing_to_pay") throw failure;
    }
  }
  hideWaiver();
  tell("Thank you. You can join as soon as a mechanic is there.");
}

function hideWaiver() {
  history.replaceState(null, "", "/customer");
  fill($("waiver"));
  $("waiver").hidden = true;
  $("book").hidden =
    $("bookings").querySelector('[data-status="pending"], [data-status="accepted"]') !== null;
}

// --- after the end ------------------------------------------------------------------------------

let lookAgain = 0;

/** The session that ended: its summary, whom to remember, how it was. */
async function showAfter(after) {
  clearTimeout(lookAgain);
  if (after === null) return fill($("after"));
  const state = await api("GET", `/api/sessions/${after.session_id}`).catch(() => null);
  if (state?.status !== "completed") return;
  const { mechanic, session_id } = after;
  const part = $("after").firstElementChild;
  if (part?.dataset.session !== session_id)
    fill($("after"), afterPart(session_id, mechanic, state));
  const summary = $("after").querySelector(".summary");
  fill(
    summary,
    state.summary && [
      el("h3", {}, "What your mechanic writes"),
      el("p", { class: "written" }, state.summary),
    ],
  );
  if (!state.summary) lookAgain = setTimeout(() => showAfter(after), LOOK_AGAIN_MS);
}

function afterPart(session_id, mechanic, { prompt, stars }) {
  const again = (provider_id) => async () => {
    const rebooked = await api("POST", "/api/customer/rebook", { provider_id });
    goOn(rebooked, rebooked.plan);
  };
  const remember = el("p", { class: "actions favorite-prompt" });
  const done = () => fill(remember, el("span", {}, "She is one of your favourites now."));
  if (mechanic && prompt === "favorite") {
    fill(
      remember,
      el("span", {}, `Would you like ${mechanic.name} again?`),
      button("Add to favourites", () => addFavorite(mechanic.id, "independent").then(done), "main"),
      mechanic.workshop_id &&
        button("Add her workshop", () => addFavorite(mechanic.workshop_id, "workshop").then(done)),
    );
  }
  return el(
    "article",
    { class: "card", "data-session": session_id },
    el("h2", {}, "Your session has ended"),
    el("div", { class: "summary" }),
    remember,
    stars ? rated(stars) : ratingForm(session_id),
    el(
      "p",
      { class: "actions" },
      mechanic && button(`Book ${mechanic.name} again`, again(mechanic.id)),
      button("Close", () => {
        sessionStorage.removeItem(AFTER_KEY);
        showAfter(null);
      }),
    ),
  );
}

const rated = (stars) => el("p", { class: "rated" }, `You gave ${stars} of 5. Thank you!`);

function ratingForm(session_id) {
  const star = (number) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name: "stars",
        value: String(number),
        required: true,
        "aria-label": `${number} of 5`,
      }),
      "★",
    );
  const form = el(
    "form",
    { class: "rating" },
    el(
      "fieldset",
      {},
      el("legend", {}, "How was it?"),
      el("div", { class: "stars" }, [1, 2, 3, 4, 5].map(star)),
    ),
    el(
      "label",
      {},
      "In your words ",
      el("textarea", { name: "review", maxlength: "2000", rows: "2" }),
    ),
    el("button", { class: "main" }, "Rate"),
  );
  onSubmit(form, async ({ stars, review }) => {
    const rating = { stars: Number(stars), ...(review && { review }) };
    await api("POST", `/api/sessions/${session_id}/rating`, rating);
    form.replaceWith(rated(rating.stars));
  });
  return form;
}

// --- favourites and money -----------------------------------------------------------------------

async function addFavorite(provider_id, provider_type) {
  await api("POST", "/api/customer/favorites", { provider_id, provider_type });
  dispatchEvent(new Event("favorites"));
}

function showFavorites(favorites) {
  const there = ({ provider_type: kind, is_online, available, available_mechanics }) =>
    kind === "workshop"
      ? `${available_mechanics} available`
      : is_online
        ? available
          ? "online"
          : "online, busy"
        : "offline";
  const remove =
    ({ provider_id }) =>
    async () => {
      await api("DELETE", `/api/customer/favorites/${provider_id}`);
      dispatchEvent(new Event("favorites"));
    };
  const again =
    ({ provider_id }) =>
    async () => {
      const rebooked = await api("POST", "/api/customer/rebook", { provider_id });
      goOn(rebooked, rebooked.plan);
    };
  fill(
    $("favorites"),
    table(
      "Favourites",
      ["Name", "Now", "Sessions", ""],
      favorites.map((one) => [
        one.name + (one.most_booked ? " ★" : ""),
        there(one),
        one.sessions,
        el(
          "span",
          { class: "actions" },
          one.sessions > 0 && button("Book again", again(one)),
          button("Remove", remove(one)),
        ),
      ]),
      "Nobody yet. You are asked after each session.",
    ),
  );
}

async function showMoney() {
  try {
    const { payments } = await api("GET", "/api/customer/payments?limit=10");
    fill(
      $("payments"),
      table(
        "Payments",
        ["When", "Amount", "State", ""],
        payments.map((one) => [
          moment(one.created_at),
          money(one.amount_cents, one.currency),
          words(one.status),
          one.message,
        ]),
        "You have paid nothing yet.",
      ),
    );
    const credits = await apiIfThere("GET", "/api/customer/credits?limit=10");
    if (credits) showCredits(credits);
  } catch (failure) {
    complain(failure);
  }
}

function showCredits({ balances, entries }) {
  const owned = balances
    .filter(({ balance_cents }) => balance_cents > 0)
    .map(({ balance_cents, currency }) => money(balance_cents, currency))
    .join(", ");
  $("credits-field").hidden = owned === "";
  fill($("credits-balance"), owned && `(you have ${owned})`);
  fill(
    $("credits"),
    entries.length > 0 && [
      el("h3", {}, `Credits: ${owned || "none"}`),
      table(
        "Credits",
        ["When", "Amount", "Why", "Balance"],
        entries.map((one) => [
          moment(one.at),
          money(one.amount_cents, one.currency),
          words(one.reason),
          money(one.balance_cents, one.currency),
        ]),
        "",
      ),
    ],
  );
}
