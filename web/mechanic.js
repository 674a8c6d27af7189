// The mechanic's page: availability, offers as they come, sessions, what was earned.

import { api, apiIfThere } from "./client.js";
import {
  $,
  List,
  asPerson,
  button,
  carefulButton,
  complain,
  countdown,
  el,
  fill,
  many,
  moment,
  money,
  onSubmit,
  table,
  tell,
  words,
} from "./page.js";
import { lives, sessionPart } from "./session.js";

const STAGES = {
  priority: "You were asked by name",
  preferred: "Your workshop is asked first",
  open: "Everyone is asked",
};
const LOST = {
  taken: "Somebody else was faster.",
  expired: "The time of this request was over.",
  cancelled: "The customer cancelled.",
  busy: "You have a session already.",
  unavailable: "You are not available.",
  not_found: "This offer is not for you any longer.",
};
const PAGE = 20;

asPerson("mechanic", (live, who) => {
  const desk = new Desk(live, who);
  live.addEventListener("welcome", ({ detail }) => desk.begin(detail.snapshot));
  live.addEventListener("frame", ({ detail }) => desk.take(detail));
  document.addEventListener("visibilitychange", () => desk.see());
  $("available").addEventListener("change", ({ target }) => setAvailable(live, target));
  $("why").addEventListener("click", () => showReasons().catch(complain));
  $("all").addEventListener(
    "toggle",
    () => $("all").open && showAvailable(desk, 0).catch(complain),
  );
  showEarnings().catch(complain);
  showWhetherApproved().catch(complain);
});

// --- offers and sessions ------------------------------------------------------------------------

class Desk {
  #live;
  #offers = new Map(); // offer_id -> offer
  #sessions = new Map(); // session_id -> {state, about}
  #seen = new Set(); // offer_id and attempt
  #offerList;
  #sessionList;
  #taken = new Map(); // offers without a verdict yet: offer_id -> {offer, joins}
  #parts = new Map();

  constructor(live, who) {
    this.#live = live;
    this.#offerList = new List(
      $("offers"),
      (offer) => offer.offer_id,
      () => offerCard(this),
    );
    this.#sessionList = new List(
      $("sessions"),
      ({ state }) => state.session_id,
      ({ state }) => {
        const part = sessionCard(live, who, state.session_id);
        this.#parts.set(state.session_id, part);
        return part;
      },
    );
  }

  begin({ available, offers, sessions }) {
    $("available").checked = available;
    this.#offers = new Map(offers.map((offer) => [offer.offer_id, offer]));
    const known = this.#sessions;
    this.#sessions = new Map(
      sessions.map((state) => [state.session_id, { ...known.get(state.session_id), state }]),
    );
    for (const [sessionId, { about }] of known) {
      if (!this.#sessions.has(sessionId)) this.#readEnd(sessionId, about).catch(complain);
    }
    this.#show();
    this.#readAbout().catch(complain);
  }

  take(frame) {
    const { type, offer_id, session_id, reason } = frame;
    if (type === "offer") this.#offers.set(offer_id, frame);
    else if (type === "offer.revoked") this.#revoked(offer_id, reason);
    else if (type === "offer.lost") this.#lost(offer_id, reason);
    else if (type === "offer.won") this.#won(frame);
    else if (type === "session.status") this.#status(frame);
    else if (type === "session.warning") this.#parts.get(session_id)?.warn(frame);
    else return;
    this.#show();
  }

  /** Takes an offer; where it `joins`, she enters its session as soon as it is hers. */
  accept(offer, { joins = false } = {}) {
    this.#taken.set(offer.offer_id, { offer, joins });
    return this.#live.accepts.accept(offer.offer_id);
  }

  decline(offer_id) {
    return this.#live.ask({ type: "offer.decline", offer_id }).then(() => {
      this.#offers.delete(offer_id);
      this.#show();
    });
  }

  /** Tells which cards have been looked at, once for each attempt: only with the page in sight. */
  see() {
    if (document.hidden) return;
    const key = ({ offer_id, attempt }) => `${offer_id} ${attempt}`;
    const fresh = [...this.#offers.values()]
      .filter((offer) => !this.#seen.has(key(offer)))
      .slice(0, 100);
    if (fresh.length === 0) return;
    if (!this.#live.send({ type: "offer.seen", offer_ids: fresh.map(({ offer_id }) => offer_id) }))
      return;
    for (const offer of fresh) this.#seen.add(key(offer));
    this.see();
  }

  #revoked(offerId, reason) {
    const offer = this.#offers.get(offerId);
    if (offer && reason !== "withdrawn") tell(`${offer.customer_name}: ${LOST[reason]}`);
    this.#offers.delete(offerId);
  }

  #lost(offerId, reason) {
    this.#taken.delete(offerId);
    this.#offers.delete(offerId);
    tell(LOST[reason], "bad");
  }

  #won({ offer_id, session_id }) {
    const { offer, joins } = this.#taken.get(offer_id) ?? { offer: this.#offers.get(offer_id) };
    this.#taken.delete(offer_id);
    this.#offers.delete(offer_id);
    tell(offer ? `${offer.customer_name} is yours.` : "The session is yours.", "good");
    if (!this.#sessions.has(session_id)) {
      const state = { session_id, status: "accepted", mechanics_connected: 0 };
      this.#sessions.set(session_id, { about: offer, state });
    } else this.#sessions.get(session_id).about ??= offer;
    this.#readAbout().catch(complain);
    if (joins) this.#live.ask({ type: "session.join", session_id }).catch(complain);
  }

  #status(state) {
    const { session_id } = state;
    const { about } = this.#sessions.get(session_id) ?? {};
    if (lives(state)) this.#sessions.set(session_id, { about, state });
    else if (this.#sessions.delete(session_id)) ended(session_id, about, state);
    if (!about && lives(state)) this.#readAbout().catch(complain);
  }

  /** Whom the sessions are for and what they asked for: the frames do not say. */
  async #readAbout() {
    if ([...this.#sessions.values()].every(({ about }) => about)) return;
    const { active } = await api("GET", "/api/mechanic/sessions?limit=1");
    for (const about of active) {
      const session = this.#sessions.get(about.session_id);
      if (session) session.about = about;
    }
    this.#show();
  }

  async #readEnd(sessionId, about) {
    const state = await apiIfThere("GET", `/api/sessions/${sessionId}`); // it may be another's now
    if (state && !lives(state)) ended(sessionId, about, state);
  }

  #show() {
    this.#offerList.show([...this.#offers.values()].sort(byUrgency));
    this.#sessionList.show([...this.#sessions.values()]);
    fill($("offer-count"), this.#offers.size ? many(this.#offers.size, "offer") : "");
    $("no-offers").hidden = this.#offers.size > 0;
    $("no-sessions").hidden = this.#sessions.size > 0;
    document.title = (this.#offers.size ? `(${this.#offers.size}) ` : "") + "Dispatch: mechanic";
    this.see();
  }
}

const byUrgency = (one, other) =>
  other.urgent - one.urgent ||
  other.score - one.score ||
  one.created_at.localeCompare(other.created_at);

function offerCard(desk) {
  const node = el("article", { class: "card offer" });
  let shown = "";

  function update(offer) {
    const now = JSON.stringify({ ...offer, server_time: null });
    if (now === shown) return;
    shown = now;
    const { offer_id, exclusive_until, expires_at } = offer;
    node.classList.toggle("highlighted", offer.highlighted || offer.preferred);
    fill(
      node,
      el(
        "h3",
        {},
        offer.customer_name,
        offer.urgent && el("span", { class: "badge urgent" }, "urgent"),
        offer.is_specialist && el("span", { class: "badge" }, "specialist"),
      ),
      el(
        "p",
        { class: "quiet" },
        `${words(offer.session_type)}, ${offer.minutes} minutes`,
        offer.vehicle && ` · ${offer.vehicle}`,
      ),
      offer.concern && el("p", { class: "concern" }, offer.concern),
      el(
        "p",
        { class: "quiet" },
        STAGES[offer.stage],
        exclusive_until && [" for ", countdown(exclusive_until)],
        " · open for ",
        countdown(expires_at),
      ),
      el(
        "p",
        { class: "actions" },
        button("Accept", () => desk.accept(offer), "main"),
        button("Accept and join", () => desk.accept(offer, { joins: true })),
        button("Decline", () => desk.decline(offer_id)),
      ),
    );
  }

  return { node, update };
}

function sessionCard(live, who, session_id) {
  const about = el("div", {});
  const ways = el("p", { class: "actions" });
  const join = () => live.ask({ type: "session.join", session_id });
  const session = sessionPart(live, who, session_id, { join });
  const notes = el(
    "details",
    { class: "notes" },
    el("summary", {}, "Summary and notes"),
    summaryForm(session_id),
  );
  const node = el("article", { class: "card" }, about, session.node, notes, ways);
  const giveBack = carefulButton("I cannot come", "Give it back?", () =>
    live.ask({ type: "assignment.cancel", session_id }),
  );

  function update({ state, about: what }) {
    session.update(state);
    notes.hidden = state.status !== "active";
    fill(ways, state.status === "accepted" && giveBack);
    fill(about, described(what));
  }

  return { node, update, warn: session.warn, gone: session.gone };
}

const described = (what) => [
  el("h3", {}, what?.customer_name ?? "Your customer"),
  what &&
    el(
      "p",
      { class: "quiet" },
      `${words(what.session_type)}, ${what.minutes} minutes`,
      what.vehicle && ` · ${what.vehicle}`,
    ),
  what?.concern && el("p", { class: "concern" }, what.concern),
];

const forms = new Map(); // of a session: what is half written goes on after its end

function summaryForm(session_id) {
  if (!forms.has(session_id)) forms.set(session_id, newSummaryForm(session_id));
  return forms.get(session_id);
}

function newSummaryForm(session_id) {
  const form = el(
    "form",
    {},
    el(
      "label",
      {},
      "Summary, for you and the customer ",
      el("textarea", { name: "summary", rows: "3", maxlength: "4000", required: true }),
    ),
    el(
      "label",
      {},
      "Notes, for you alone ",
      el("textarea", { name: "notes", rows: "2", maxlength: "4000" }),
    ),
    el("button", { class: "main" }, "Save"),
  );
  onSubmit(form, async ({ summary, notes }) => {
    await api("PUT", `/api/sessions/${session_id}/summary`, { summary, ...(notes && { notes }) });
    tell("Saved.", "good");
  });
  return form;
}

const HOW_IT_ENDED = {
  completed: "The session has ended.",
  cancelled: "The session was cancelled.",
  expired: "It expired.",
};

function ended(session_id, about, { status }) {
  if (status === "accepted" || status === "pending") return;
  const node = el(
    "article",
    { class: "card", "data-session": session_id },
    described(about),
    el("p", {}, HOW_IT_ENDED[status] ?? words(status)),
    status === "completed" && summaryForm(session_id),
    el(
      "p",
      { class: "actions" },
      button("Close", () => node.remove()),
    ),
  );
  for (const old of $("written").children) if (old.dataset.session === session_id) return;
  $("written").prepend(node);
  showEarnings().catch(complain);
}

// --- what she may take --------------------------------------------------------------------------

async function showAvailable(desk, offset) {
  const { available, total } = await api(
    "GET",
    `/api/mechanic/sessions?limit=${PAGE}&offset=${offset}`,
  );
  const page = (text, to) => button(text, () => showAvailable(desk, to));
  fill(
    $("available-sessions"),
    table(
      "Available sessions",
      ["Customer", "What", "Open for", ""],
      available.map((offer) => [
        offer.customer_name,
        `${words(offer.session_type)}, ${offer.minutes} min`,
        countdown(offer.expires_at),
        button("Accept and join", () => desk.accept(offer, { joins: true })),
      ]),
      "Nothing that you could take right now.",
    ),
    el(
      "p",
      { class: "actions" },
      page("Look again", offset),
      offset > 0 && page("Before", Math.max(0, offset - PAGE)),
      offset + PAGE < total && page("More", offset + PAGE),
    ),
  );
}

async function setAvailable(live, box) {
  try {
    await live.ask({ type: "availability.set", available: box.checked });
  } catch (failure) {
    box.checked = !box.checked;
    complain(failure);
  }
}

// --- what she asks about herself ----------------------------------------------------------------

async function showReasons() {
  const { reasons, open_requests, lately } = await api("GET", "/api/mechanic/why-no-offers");
  fill(
    $("reasons"),
    el(
      "div",
      { class: "card" },
      el("h2", {}, "Why no offers?"),
      reasons.length
        ? el(
            "ul",
            {},
            reasons.map(({ message }) => el("li", {}, message)),
          )
        : el("p", {}, "Nothing keeps you from offers."),
      Object.entries(open_requests.not_for_you).map(([why, count]) =>
        el("p", { class: "quiet" }, `${count} open for others: ${words(why)}.`),
      ),
      el(
        "p",
        { class: "quiet" },
        `Since ${moment(lately.offers_since)}: ${lately.offers_sent} offers sent, ` +
          `${lately.offers_seen} seen, ${lately.accepted} accepted, ${lately.declined} declined.`,
      ),
      button("Close", () => fill($("reasons"))),
    ),
  );
}

async function showWhetherApproved() {
  const answer = await apiIfThere("GET", "/api/mechanic/why-no-offers");
  const waiting = answer?.reasons.find(({ code }) => code === "not_approved");
  fill($("waiting"), waiting?.message);
}

async function showEarnings() {
  const { summary, earnings, payouts } = await api("GET", "/api/mechanic/earnings?limit=10");
  const at = (cents, { currency }) => money(cents, currency);
  fill(
    $("earnings"),
    summary.map((sum) =>
      el(
        "p",
        {},
        `${many(sum.sessions, "session")} · earned ${at(sum.mechanic_net_cents, sum)} · ` +
          `to be paid ${at(sum.due_cents, sum)} · ` +
          `on its way ${at(sum.processing_cents, sum)} · paid ${at(sum.paid_cents, sum)}`,
      ),
    ),
    table(
      "Earnings",
      ["When", "What", "Price", "Yours", "Payout"],
      earnings.map((one) => [
        moment(one.completed_at),
        words(one.session_type),
        at(one.gross_amount_cents, one),
        at(one.mechanic_net_cents, one),
        words(one.payout_status),
      ]),
      "You have earned nothing yet. What a workshop's mechanics earn is paid to the workshop.",
    ),
    el(
      "p",
      { class: "actions" },
      el(
        "span",
        { class: "quiet" },
        payouts.payouts_enabled
          ? "Payouts go to your account at Stripe."
          : "No account for payouts yet.",
      ),
      button(payouts.account ? "My account at Stripe" : "Set up payouts", async () => {
        location.assign((await api("POST", "/api/mechanic/stripe/onboard")).url);
      }),
    ),
  );
}
