// A session as both sides see it: who is there, the minutes left, chat, video, the end.

import { api } from "./client.js";
import { button, carefulButton, clock, countdown, el, fill, onSubmit } from "./page.js";

/** Whether there is still something to come of it. */
export const lives = ({ status }) =>
  ["scheduled", "pending", "accepted", "active"].includes(status);

/**
 * What belongs to one session: `node`, `update(state)` for each `session.status`, `warn(frame)` for
 * its warning, and `gone()` when it is no longer shown. `join` enters it.
 */
export function sessionPart(live, who, sessionId, { join: enter }) {
  const line = el("p", { class: "line" });
  const warning = el("p", { class: "warning", role: "alert" });
  const ways = el("p", { class: "actions" });
  const chat = chatPart(live, who, sessionId);
  const video = el("div", {});
  const node = el("div", { class: "session" }, line, warning, chat.node, video, ways);
  let shown = "";
  let maySeeEachOther = false;

  const join = button("Join", enter, "main");
  const end = carefulButton("End session", "End it for both?", () =>
    live.ask({ type: "session.end", session_id: sessionId }),
  );
  const call = button("Video room", async () => fill(video, room(await token())));
  const token = () => api("POST", `/api/sessions/${sessionId}/video-token`);

  function update(state) {
    const now = `${state.status} ${state.mechanics_connected} ${state.ends_at}`;
    if (now === shown) return;
    shown = now;
    const isActive = state.status === "active";
    node.hidden = !["accepted", "active"].includes(state.status);
    if (!isActive) fill(warning);
    fill(line, connected(state, who.role), isActive && [" · ", countdown(state.ends_at), " left"]);
    const isIn = who.role === "mechanic" && state.mechanics_connected === 1;
    fill(ways, !isActive && !isIn && join, end, call);
    call.hidden = !(isActive && maySeeEachOther);
    chat.allow(isActive);
    if (isActive) lookForVideo();
  }

  /** The frames do not say what was booked: a chat has no video. */
  async function lookForVideo() {
    if (maySeeEachOther) return;
    const details = await api("GET", `/api/sessions/${sessionId}`).catch(() => null);
    maySeeEachOther = details !== null && details.session_type !== "chat";
    call.hidden = !(maySeeEachOther && details.status === "active");
  }

  function warn({ ends_at }) {
    fill(warning, "This session ends at ", clock(ends_at), ", in ", countdown(ends_at), ".");
  }

  return { node, update, warn, gone: chat.gone };
}

const CONNECTED = {
  customer: ["Waiting for your mechanic", "1 mechanic connected"],
  mechanic: ["Your customer waits for you", "You are in"],
};

function connected({ mechanics_connected: count }, role) {
  return el("strong", { class: "connected", "data-count": count }, CONNECTED[role][count]);
}

function room({ url, room, token, expires_at }) {
  const value = (text) => el("input", { readonly: true, value: text });
  return el(
    "details",
    { open: true },
    el("summary", {}, `Video room, until ${clock(expires_at)}`),
    el("label", {}, "Server", value(url)),
    el("label", {}, "Room", value(room)),
    el("label", {}, "Your key", value(token)),
  );
}

function chatPart(live, who, sessionId) {
  const log = el("ol", { class: "chat", role: "log", "aria-label": "Chat", tabindex: "0" });
  const words = el("textarea", {
    name: "body",
    rows: "1",
    required: true,
    "aria-label": "Message",
  });
  const form = el("form", { class: "say" }, words, el("button", { class: "main" }, "Send"));
  const talk = live.chats.open(sessionId, show);

  onSubmit(form, async ({ body }) => {
    if (body.trim() === "") return;
    talk.say(body);
    form.reset();
    words.focus();
  });
  words.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });

  function show() {
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    fill(log, talk.messages.map(said), talk.unsent.map(unsent));
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  const said = ({ seq, sender_id, body, sent_at }) =>
    el(
      "li",
      { class: sender_id === who.user_id ? "mine" : "theirs", "data-seq": seq },
      el("span", { class: "body" }, body),
      el("time", { datetime: sent_at }, clock(sent_at)),
    );

  const unsent = ({ body, failed }) =>
    el(
      "li",
      { class: failed ? "mine failed" : "mine unsent" },
      el("span", { class: "body" }, body),
      el("small", {}, failed ?? "sending…"),
    );

  function allow(maySay) {
    form.hidden = !maySay;
    log.hidden = !maySay && talk.messages.length === 0;
  }

  return { node: el("div", {}, log, form), allow, gone: () => live.chats.close(sessionId) };
}
