// The inbox: asks every two seconds what is new and shows the chosen message. All that came from
// outside enters the page as text; a mail's HTML only ever in a frame without scripts or origin.

const EVERY_MS = 2000;

const list = document.querySelector("#list");
const pane = document.querySelector("#message");
const live = document.querySelector("#live");
const filters = [...document.querySelectorAll("nav button")];

let messages = [];
let smtp = "";
let version = null;
let filter = "all";
let view = "page";
let shown = null;
const read = new Set();

const SIGNATURES = {
  verified: "✓ signature verified",
  wrong: "✗ signature wrong",
  stale: "✗ signature too old or too new",
  missing: "✗ not signed",
  unknown: "? no secret to verify with",
};

function element(tag, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value);
  }
  if (text !== undefined) made.textContent = text;
  made.append(...children.filter(Boolean));
  return made;
}

const tint = (message) => (message.resolved ? "resolved" : (message.severity ?? ""));
const titleOf = (message) =>
  message.kind === "mail"
    ? message.subject || "(no subject)"
    : [message.type, message.title].filter(Boolean).join(" · ") || `POST /hooks/${message.path}`;
const fromOf = (message) =>
  message.kind === "mail" ? `to ${message.recipients.join(", ")}` : `webhook “${message.path}”`;

function whenOf(message, whole = false) {
  const at = new Date(message.received_at);
  const today = at.toDateString() === new Date().toDateString();
  const time = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
  const day = { day: "numeric", month: "short" };
  if (whole) return at.toLocaleString(undefined, { ...day, year: "numeric", ...time });
  return today ? at.toLocaleTimeString(undefined, time) : at.toLocaleDateString(undefined, day);
}

function badgesOf(message, brief) {
  const badges = [];
  if (message.severity && !brief) {
    badges.push(element("span", { class: `badge full ${message.severity}`, text: message.severity }));
  }
  if (message.resolved && !brief) {
    badges.push(element("span", { class: "badge resolved", text: "resolved" }));
  }
  if (message.kind === "webhook") {
    const told = SIGNATURES[message.signature] ?? message.signature;
    const text = brief ? told.slice(0, 1) : told;
    badges.push(
      element("span", { class: `badge ${message.signature}`, title: told, text, "aria-label": told }),
    );
  }
  if (message.times > 1) {
    const title = `received ${message.times} times with the same id`;
    badges.push(element("span", { class: "badge plain", text: `${message.times}×`, title }));
  }
  return badges;
}

function drawList() {
  for (const button of filters) {
    const kind = button.dataset.filter;
    const count = messages.filter((message) => kind === "all" || message.kind === kind).length;
    button.querySelector(".count").textContent = count;
    button.setAttribute("aria-pressed", String(kind === filter));
  }
  const chosen = currentId();
  const seen = messages.filter((message) => filter === "all" || message.kind === filter);
  const focused = document.activeElement?.closest?.("#list a")?.hash;
  list.replaceChildren(
    ...seen.map((message) => {
      const link = element(
        "a",
        {
          href: `#${message.id}`,
          class: [tint(message), read.has(message.id) ? "" : "unread"].join(" ").trim() || null,
          "aria-current": message.id === chosen ? "true" : null,
        },
        element("span", { class: "what", text: titleOf(message) }),
        element("time", { datetime: message.received_at, text: whenOf(message) }),
        element("span", { class: "from", text: fromOf(message) }),
        element("span", { class: "signs" }, ...badgesOf(message, true)),
      );
      return element("li", {}, link);
    }),
  );
  if (seen.length === 0) {
    list.append(
      element(
        "li",
        { class: "empty" },
        element("strong", { text: "Nothing yet" }),
        `Mail handed in at ${smtp} and webhooks posted to ${location.origin}/hooks/… will be listed here.`,
      ),
    );
  }
  if (focused) list.querySelector(`a[href="${focused}"]`)?.focus({ preventScroll: true });
}

const currentId = () => Number(location.hash.slice(1)) || null;

function lines(pairs) {
  const made = element("dl", { class: "lines" });
  for (const [name, value] of pairs) {
    if (value) made.append(element("dt", { text: name }), element("dd", { text: value }));
  }
  return made;
}

function prettyJson(value) {
  const made = element("pre", { tabindex: "0" });
  const tokens = /("(?:\\.|[^"\\])*")(\s*:)?|\b(?:true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
  const text = JSON.stringify(value, null, 2);
  let end = 0;
  for (const match of text.matchAll(tokens)) {
    made.append(text.slice(end, match.index));
    const token = match[1] ?? match[0];
    const kind = match[2] ? "key" : match[1] ? "string" : /^[-\d]/.test(token) ? "number" : "word";
    made.append(element("span", { class: kind, text: token }), match[2] ?? "");
    end = match.index + match[0].length;
  }
  made.append(text.slice(end));
  return made;
}

function drawMessage() {
  const message = messages.find((one) => one.id === currentId());
  document.body.classList.toggle("open", Boolean(message));
  const state = JSON.stringify([message, view]);
  if (state === shown) return;
  shown = state;
  if (!message) {
    const hint = messages.length ? "Choose a message" : "The inbox is empty";
    pane.replaceChildren(element("div", { class: "empty" }, element("strong", { text: hint })));
    return;
  }
  read.add(message.id);
  const back = element("button", { type: "button", class: "back", text: "‹ Inbox" });
  back.addEventListener("click", () => (location.hash = ""));
  const headers = element(
    "details",
    {},
    element("summary", { text: `All ${message.headers.length} headers` }),
    lines(message.headers),
  );
  const told =
    message.kind === "mail"
      ? [["From", message.sender], ["To", message.recipients.join(", ")], ["Received", whenOf(message, true)]]
      : [["Hook", `/hooks/${message.path}`], ["Id", header(message, "webhook-id")], ["Received", whenOf(message, true)]];
  const top = element(
    "div",
    { class: "top" },
    back,
    element("div", { class: "badges" }, ...badgesOf(message, false)),
    element("h2", { text: titleOf(message) }),
    lines(told),
    headers,
  );
  pane.replaceChildren(top, ...contentOf(message));
  pane.scrollTop = 0;
}

const header = (message, name) => message.headers.find(([key]) => key === name)?.[1];

function contentOf(message) {
  if (message.kind === "webhook") {
    const body = message.body === null ? element("pre", { text: message.raw }) : prettyJson(message.body);
    return [body];
  }
  const text = element("pre", { text: message.text || "(no text)", tabindex: "0" });
  if (!message.has_html) return [text];
  const views = element("div", { class: "views" });
  for (const [name, label] of [["page", "As designed"], ["text", "Plain text"]]) {
    const button = element("button", { type: "button", text: label, "aria-pressed": String(name === view) });
    button.addEventListener("click", () => {
      view = name;
      drawMessage();
    });
    views.append(button);
  }
  if (view === "text") return [views, text];
  const frame = element("iframe", {
    title: "The mail as designed",
    sandbox: "allow-popups allow-popups-to-escape-sandbox",
    referrerpolicy: "no-referrer",
    src: `mails/${message.id}.html`,
  });
  return [views, frame];
}

async function refresh() {
  try {
    const answer = await fetch("messages.json", {
      headers: version ? { "If-None-Match": version } : {},
      cache: "no-store",
    });
    if (answer.status === 200) {
      version = answer.headers.get("ETag");
      ({ messages, smtp } = await answer.json());
      drawList();
      drawMessage();
    }
    live.className = "on";
    live.textContent = "live";
  } catch {
    live.className = "off";
    live.textContent = "not reachable";
  }
}

async function keepFresh() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

for (const button of filters) {
  button.addEventListener("click", () => {
    filter = button.dataset.filter;
    drawList();
  });
}
document.querySelector("#clear").addEventListener("click", async () => {
  if (!confirm("Forget all messages?")) return;
  await fetch("messages.json", { method: "DELETE" });
  location.hash = "";
  await refresh();
});
addEventListener("hashchange", () => {
  drawMessage();
  drawList();
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());

keepFresh();
