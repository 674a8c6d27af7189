// The client: who is logged in, HTTP calls, and one live connection of the protocol dispatch.v1.
//
// Knows nothing of the page. The token lives in this tab's sessionStorage and goes out in a header
// or in the first frame, never in an address. A lost connection is made again by itself; what was
// asked and not answered (accepts, chat) is asked again under the same ids, which the server
// answers the same way.

const TOKEN_KEY = "dispatch.login";
const REFRESH_MS = 3 * 3600 * 1000; // tokens live for twelve hours
const SILENCE_FACTOR = 1.5; // of heartbeat_seconds, before we ask whether anybody is there
const ANSWER_MS = 10_000;
const BACKOFF_MS = { first: 250, most: 15_000 };
const NOT_AUTHENTICATED = 4401;
const TRY_AGAIN = new Set(["unavailable_now", "rate_limited", "lost"]);
const TRY_AGAIN_MS = 1000;
const HISTORY_LIMIT = 200;

/** What went wrong, as the server says it: `code`, a message for people, and what stood beside. */
export class Failure extends Error {
  constructor(code, message, status = 0, beside = {}) {
    super(message);
    Object.assign(this, { code, status, beside });
  }
}

/** A random UUID, also where the page does not come over TLS. */
function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

// --- who is logged in ---------------------------------------------------------------------------

/** {token, role, user_id, email} of this tab, or null. */
export function login() {
  try {
    return JSON.parse(sessionStorage.getItem(TOKEN_KEY));
  } catch {
    return null;
  }
}

/** Nothing of this person stays in the tab. */
export function forget() {
  sessionStorage.clear();
}

/** Logs in or signs up, by the path; refuses a role that this page is not for. */
export async function enter(path, form, role) {
  const answer = await api("POST", path, form);
  if (answer.role !== role) {
    throw new Failure("wrong_role", `This is the page for a ${role}; you are a ${answer.role}.`);
  }
  keep(answer, form.email);
  return login();
}

function keep({ token, role, user_id }, email) {
  sessionStorage.setItem(TOKEN_KEY, JSON.stringify({ token, role, user_id, email }));
}

/** Voids every token of this person, on every device, and forgets ours. */
export async function logOut() {
  try {
    await api("POST", "/api/auth/logout");
  } finally {
    forget();
  }
}

/** One HTTP call; the answer's JSON, or a Failure. */
export async function api(method, path, body) {
  const headers = { accept: "application/json" };
  const who = login();
  if (who) headers.authorization = `Bearer ${who.token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    const options = {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
    };
    response = await fetch(path, { ...options, redirect: "error", cache: "no-store" });
  } catch {
    throw new Failure("lost", "The server cannot be reached. Please try again.");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok && answer.ok) return answer;
  const { error, ok, ...beside } = answer;
  throw new Failure(
    error?.code ?? "internal",
    error?.message ?? "Something went wrong.",
    response.status,
    beside,
  );
}

/** The same, and null where the server does not have (or does not do) such a thing. */
export async function apiIfThere(method, path, body) {
  try {
    return await api(method, path, body);
  } catch (failure) {
    if (failure.status === 404 || failure.status === 501) return null;
    throw failure;
  }
}

// --- the live connection ------------------------------------------------------------------------

/**
 * One person's connection, for as long as the page is open. Events:
 *
 *   welcome   `detail` is the welcome: its snapshot is the whole truth, everything later a change
 *   frame     `detail` is any other frame that says something new
 *   state     `detail` is "connecting", "live" or "waiting" (for the next attempt)
 *   out       the token is no longer good: log in again
 */
export class Live extends EventTarget {
  #socket = null;
  #attempts = 0;
  #drainMs = null;
  #offsetMs = 0;
  #heardAt = 0;
  #pingedAt = 0; // when we asked whether anybody is there; 0 since something was heard
  #silenceMs = 30_000;
  #timer = 0;
  #closed = false;
  #asked = new Map(); // id of a frame -> {resolve, reject, timer}
  #versions = new Map(); // request or session -> the highest version that came
  #state = "";
  chats = new Chats(this);
  accepts = new Accepts(this);

  constructor() {
    super();
    addEventListener("online", () => this.reconnect());
    document.addEventListener("visibilitychange", () => document.hidden || this.#check());
    setInterval(() => this.#check(), 5000);
    setInterval(() => this.#refresh().catch(() => {}), REFRESH_MS);
    this.#connect();
  }

  /** The server's time now, in milliseconds. */
  now() {
    return Date.now() + this.#offsetMs;
  }

  get isLive() {
    return this.#state === "live";
  }

  /** Fire and forget: nothing is lost that the next snapshot would not tell. */
  send(frame) {
    if (!this.isLive || this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  /** Sends a frame and gives its answer; a Failure for an `error`, and `lost` without an answer. */
  ask(frame) {
    return new Promise((resolve, reject) => {
      const id = newId();
      if (!this.send({ ...frame, id })) {
        reject(new Failure("lost", "Not connected right now. It will be back in a moment."));
        return;
      }
      const timer = setTimeout(() => this.#answer(id, null), ANSWER_MS);
      this.#asked.set(id, { resolve, reject, timer });
    });
  }

  /** Now, instead of after the wait. */
  reconnect() {
    this.#attempts = 0;
    if (this.#state === "waiting") this.#connect();
    else if (this.isLive) this.#socket.close(1000);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }

  #connect() {
    clearTimeout(this.#timer);
    if (this.#closed) return;
    this.#say("connecting");
    const url = new URL("/ws", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, ["dispatch.v1.json"]);
    this.#socket = socket;
    this.#heardAt = Date.now();
    this.#pingedAt = 0;
    socket.onopen = () => {
      const hello = { type: "hello", token: login()?.token ?? "", client: "web/1" };
      socket.send(JSON.stringify(hello));
    };
    socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    socket.onclose = (event) => socket === this.#socket && this.#lost(event.code);
  }

  #lost(code) {
    for (const id of [...this.#asked.keys()]) this.#answer(id, null);
    if (this.#closed) return;
    if (code === NOT_AUTHENTICATED) {
      this.close();
      this.dispatchEvent(new CustomEvent("out"));
      return;
    }
    const most = Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** this.#attempts++);
    const wait = this.#drainMs ?? most * (0.5 + Math.random() / 2);
    this.#drainMs = null;
    this.#timer = setTimeout(() => this.#connect(), wait);
    this.#say("waiting");
  }

  #take(frame) {
    this.#heardAt = Date.now();
    this.#pingedAt = 0;
    if (frame.server_time) this.#offsetMs = Date.parse(frame.server_time) - Date.now();
    if (frame.type === "welcome") this.#welcome(frame);
    else if (frame.type === "drain") this.#drainMs = frame.reconnect_after_ms;
    else this.#tell(frame);
    if (frame.re) this.#answer(frame.re, frame);
  }

  #welcome(frame) {
    this.#attempts = 0;
    this.#silenceMs = frame.heartbeat_seconds * 1000 * SILENCE_FACTOR;
    this.#versions.clear();
    for (const one of [...(frame.snapshot.requests ?? []), ...(frame.snapshot.sessions ?? [])]) {
      this.#isNews(one);
    }
    this.#say("live");
    this.dispatchEvent(new CustomEvent("welcome", { detail: frame }));
    this.accepts.resume();
    this.chats.resume();
  }

  #tell(frame) {
    if (!this.#isNews(frame)) return;
    this.accepts.take(frame);
    if (frame.type === "chat.message") this.chats.take([frame]);
    if (frame.type === "chat.messages") this.chats.take(frame.messages, frame);
    this.dispatchEvent(new CustomEvent("frame", { detail: frame }));
  }

  /** Whether a state is not older than what is known: an equal version replaces. */
  #isNews(frame) {
    const state = frame.type === "board.event" ? frame.request : frame;
    if (typeof state.version !== "number") return true;
    const key = `${frame.type} ${state.request_id ?? state.session_id}`;
    if (state.version < (this.#versions.get(key) ?? 0)) return false;
    this.#versions.set(key, state.version);
    return true;
  }

  #answer(id, frame) {
    const asked = this.#asked.get(id);
    if (!asked) return;
    clearTimeout(asked.timer);
    this.#asked.delete(id);
    if (frame === null) asked.reject(new Failure("lost", "The connection was lost."));
    else if (frame.type === "error") asked.reject(new Failure(frame.code, frame.message));
    else asked.resolve(frame);
  }

  /** A browser does not show the server's pings: after a silence we ask, then give up on it. */
  #check() {
    const now = Date.now();
    if (this.#state === "connecting" && now > this.#heardAt + ANSWER_MS) this.#abandon();
    if (!this.isLive || now < this.#heardAt + this.#silenceMs) return;
    if (this.#pingedAt === 0) {
      this.#pingedAt = now;
      this.send({ type: "ping" });
    } else if (now > this.#pingedAt + ANSWER_MS) this.#abandon();
  }

  #abandon() {
    const socket = this.#socket;
    this.#socket = null; // its end, whenever it comes, is no news
    socket?.close();
    this.#lost(0);
  }

  async #refresh() {
    const who = login();
    if (!who || this.#closed) return;
    keep(await api("POST", "/api/auth/refresh"), who.email);
    this.send({ type: "token.refresh", token: login().token });
  }

  #say(state) {
    this.#state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
  }
}

// --- accepting ----------------------------------------------------------------------------------

/** Offers that were accepted, each under one `accept_id` until there is a verdict. */
class Accepts {
  #live;
  #waiting = new Map(); // offer_id -> accept_id

  constructor(live) {
    this.#live = live;
  }

  has(offerId) {
    return this.#waiting.has(offerId);
  }

  /** The verdict comes as the frame `offer.won` or `offer.lost`. */
  accept(offerId) {
    if (!this.#waiting.has(offerId)) this.#waiting.set(offerId, newId());
    return this.#ask(offerId);
  }

  take({ type, offer_id }) {
    if (type === "offer.won" || type === "offer.lost") this.#waiting.delete(offer_id);
  }

  resume() {
    for (const offerId of this.#waiting.keys()) this.#ask(offerId);
  }

  async #ask(offer_id) {
    const accept_id = this.#waiting.get(offer_id);
    try {
      await this.#live.ask({ type: "offer.accept", offer_id, accept_id });
    } catch (failure) {
      if (!TRY_AGAIN.has(failure.code)) this.#waiting.delete(offer_id);
      else if (this.#live.isLive) {
        setTimeout(() => this.#waiting.has(offer_id) && this.#ask(offer_id), TRY_AGAIN_MS);
      }
    }
  }
}

// --- talking ------------------------------------------------------------------------------------

/** What is said in each session that is looked at: in order, without holes and doubles. */
class Chats {
  #live;
  #sessions = new Map(); // session_id -> Talk

  constructor(live) {
    this.#live = live;
  }

  /** The talk of a session; `changed` is called whenever there is more of it. */
  open(sessionId, changed) {
    const talk = new Talk(this.#live, sessionId, changed);
    this.#sessions.set(sessionId, talk);
    talk.resume();
    return talk;
  }

  close(sessionId) {
    this.#sessions.delete(sessionId);
  }

  resume() {
    for (const talk of this.#sessions.values()) talk.resume();
  }

  take(messages, page) {
    const sessionId = page?.session_id ?? messages[0]?.session_id;
    this.#sessions.get(sessionId)?.take(messages, page);
  }
}

class Talk {
  #live;
  #sessionId;
  #changed;
  #bySeq = new Map();
  #unsent = new Map(); // client_message_id -> {body, failed}
  #whole = 0; // every seq up to this one is here

  constructor(live, sessionId, changed) {
    this.#live = live;
    this.#sessionId = sessionId;
    this.#changed = changed;
  }

  get messages() {
    return [...this.#bySeq.values()].sort((one, other) => one.seq - other.seq);
  }

  /** What is on its way: [{client_message_id, body, failed}]; `failed` says why it is not. */
  get unsent() {
    return [...this.#unsent].map(([client_message_id, what]) => ({ client_message_id, ...what }));
  }

  say(body) {
    const id = newId();
    this.#unsent.set(id, { body, failed: null });
    this.#changed();
    this.#send(id);
  }

  resume() {
    this.#read();
    for (const [id, { failed }] of this.#unsent) if (!failed) this.#send(id);
  }

  take(messages, page) {
    for (const message of messages) {
      this.#bySeq.set(message.seq, message);
      this.#unsent.delete(message.client_message_id);
    }
    while (this.#bySeq.has(this.#whole + 1)) this.#whole += 1;
    if (page ? page.more : this.#bySeq.size > this.#whole) this.#read();
    this.#changed();
  }

  #read() {
    const part = { session_id: this.#sessionId, after: this.#whole, limit: HISTORY_LIMIT };
    this.#live.ask({ type: "chat.history", ...part }).catch(() => {}); // asked again on a welcome
  }

  async #send(client_message_id) {
    const { body } = this.#unsent.get(client_message_id);
    try {
      const said = { session_id: this.#sessionId, client_message_id, body };
      await this.#live.ask({ type: "chat.send", ...said });
    } catch (failure) {
      if (!this.#unsent.has(client_message_id)) return;
      if (!TRY_AGAIN.has(failure.code)) {
        this.#unsent.set(client_message_id, { body, failed: failure.message });
        this.#changed();
      } else if (this.#live.isLive) {
        setTimeout(
          () => this.#unsent.has(client_message_id) && this.#send(client_message_id),
          TRY_AGAIN_MS,
        );
      }
    }
  }
}
