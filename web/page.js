// What the pages share: elements, lists, times that tick, forms, and the frame around a person.
//
// Whatever people typed gets into the page as text (`el` makes text nodes, never HTML).

import { Failure, Live, enter, forget, logOut, login } from "./client.js";

const QUESTION_MS = 5000;
const NOTICE_MS = 12_000;
const MOST_NOTICES = 3;

export const $ = (id) => document.getElementById(id);

// --- elements -----------------------------------------------------------------------------------

/** An element with attributes and children; functions are listeners, false is left out. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child != null && child !== false));
  return made;
}

/** Makes the children of a container these, without touching those that are right already. */
export function fill(container, ...children) {
  container.replaceChildren(...children.flat().filter((child) => child != null && child !== false));
}

/** A button that is off while what it does is under way; a failure is told on the page. */
export function button(text, action, kind = "") {
  const made = el("button", { type: "button", class: kind }, text);
  made.addEventListener("click", () => during(made, action));
  return made;
}

/** A button for what cannot be taken back: it asks once more, and forgets after a while. */
export function carefulButton(text, question, action) {
  const made = button(text, async () => {
    if (made.textContent === question) return action();
    fill(made, question);
    setTimeout(() => fill(made, text), QUESTION_MS);
  });
  return made;
}

async function during(control, action) {
  const hadFocus = document.activeElement === control;
  control.disabled = true;
  try {
    await action();
  } catch (failure) {
    complain(failure);
  } finally {
    control.disabled = false;
    if (hadFocus && document.activeElement === document.body) control.focus();
  }
}

/** What a form holds, when it is sent: `action` gets {name: value}, checkboxes as booleans. */
export function onSubmit(form, action) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const values = Object.fromEntries(new FormData(form));
    for (const box of form.querySelectorAll("input[type=checkbox]")) values[box.name] = box.checked;
    const sender = event.submitter ?? form.querySelector("button");
    during(sender, () => action(values, form));
  });
}

/**
 * A list that keeps its elements: `make(item)` gives {node, update(item)} once for each key.
 * What has the focus, or is half typed, stays.
 */
export class List {
  #container;
  #keyOf;
  #make;
  #shown = new Map();

  constructor(container, keyOf, make) {
    this.#container = container;
    this.#keyOf = keyOf;
    this.#make = make;
  }

  show(items) {
    const keys = new Set(items.map(this.#keyOf));
    for (const [key, { node, gone }] of this.#shown) {
      if (keys.has(key)) continue;
      node.remove();
      gone?.();
      this.#shown.delete(key);
    }
    let before = this.#container.firstElementChild;
    for (const item of items) {
      const key = this.#keyOf(item);
      if (!this.#shown.has(key)) this.#shown.set(key, this.#make(item));
      const one = this.#shown.get(key);
      one.update(item);
      if (one.node === before) before = before.nextElementSibling;
      else this.#container.insertBefore(one.node, before);
    }
  }
}

// --- words --------------------------------------------------------------------------------------

export function money(cents, currency) {
  const style = { style: "currency", currency: currency.toUpperCase() };
  return new Intl.NumberFormat("en", style).format(cents / 100);
}

const DAY = { day: "numeric", month: "short" };
const TIME = { hour: "2-digit", minute: "2-digit" };

export function moment(text) {
  return new Date(text).toLocaleString("en-GB", { ...DAY, ...TIME });
}

export function clock(text, detail = {}) {
  return new Date(text).toLocaleTimeString("en-GB", { ...TIME, ...detail });
}

export const many = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;

/** Words of the wire for people: `priority_broadcast` is "priority broadcast". */
export const words = (name) => String(name).replaceAll("_", " ");

/** A table with a heading row; a cell is text or an element. */
export function table(caption, heads, rows, nothing) {
  if (rows.length === 0) return el("p", { class: "quiet" }, nothing);
  const cell = (tag) => (one) => el(tag, {}, one instanceof Node ? one : String(one ?? "–"));
  return el(
    "div",
    { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    el(
      "table",
      {},
      el("caption", { class: "hidden" }, caption),
      el("thead", {}, el("tr", {}, heads.map(cell("th")))),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, row.map(cell("td")))),
      ),
    ),
  );
}

// --- times that tick ----------------------------------------------------------------------------

let serverNow = () => Date.now();

/** A countdown to an instant of the server's clock. */
export function countdown(until) {
  const made = el("time", { class: "countdown", datetime: until, role: "timer" });
  tick(made);
  return made;
}

function tick(element) {
  const left = Math.max(0, Date.parse(element.dateTime) - serverNow());
  const seconds = Math.ceil(left / 1000);
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  const text = (hours ? `${hours}:${two(minutes)}` : minutes) + `:${two(seconds % 60)}`;
  if (element.textContent !== text) element.textContent = text;
  element.classList.toggle("soon", seconds <= 10);
}

setInterval(() => document.querySelectorAll("time.countdown").forEach(tick), 250);

// --- what is told in passing --------------------------------------------------------------------

/** A line at the foot of the page, read out by screen readers, gone after a while. */
export function tell(text, kind = "") {
  const line = el("p", { class: `notice ${kind}` }, text);
  line.append(
    el("button", { type: "button", "aria-label": "Dismiss", onclick: () => line.remove() }, "×"),
  );
  $("notices").append(line);
  if ($("notices").childElementCount > MOST_NOTICES) $("notices").firstElementChild.remove();
  setTimeout(() => line.remove(), NOTICE_MS);
}

export function complain(failure) {
  if (!(failure instanceof Failure)) throw failure;
  tell(sentence(failure.message), "bad");
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// --- the frame around a person ------------------------------------------------------------------

/**
 * Log-in and sign-up until somebody in this role is there, then `begin(live, who)`, once. The page
 * has #account (forms that say where they go in `data-path`), #app, #who and #link.
 */
export function asPerson(role, begin) {
  $("log-out").addEventListener("click", () => during($("log-out"), leave));
  for (const form of document.querySelectorAll("#account form")) {
    onSubmit(form, async (values) => {
      try {
        await enter(form.dataset.path, shaped(values), role);
      } catch (failure) {
        if (!(failure instanceof Failure)) throw failure;
        fill(form.querySelector("[role=alert]"), sentence(failure.message));
        return;
      }
      start();
    });
  }
  if (login()?.role === role)
    queueMicrotask(start); // once the page's own module is all there
  else show(false);

  function start() {
    const who = login();
    const live = new Live();
    serverNow = () => live.now();
    show(true);
    fill($("who"), who.email);
    live.addEventListener("state", ({ detail }) => {
      $("link").dataset.state = detail;
      fill(
        $("link"),
        { live: "live", connecting: "connecting…", waiting: "reconnecting…" }[detail],
      );
    });
    live.addEventListener("out", () => {
      forget();
      location.reload();
    });
    addEventListener("log-out", () => live.close());
    begin(live, who);
  }

  function show(isIn) {
    $("account").hidden = isIn;
    $("app").hidden = !isIn;
    $("person").hidden = !isIn;
  }

  async function leave() {
    dispatchEvent(new Event("log-out"));
    await logOut().catch(() => {});
    location.assign(location.pathname);
  }
}

/** An invite may be pasted as the whole link of the mail. */
function shaped(values) {
  if (values.token) values.token = values.token.trim().replace(/^.*[?&]token=([^&#]+).*$/, "$1");
  return values;
}
