// Talking to the server: JSON, one streamed turn, one upload.
import { said } from "./said.js";
import { t } from "./words.js";

export class ApiError extends Error {
  constructor(kind, message, status) {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}

async function told(reply) {
  if (reply.ok) return reply;
  let body = {};
  try { body = await reply.json(); } catch { /* not ours: a proxy's page */ }
  if (reply.status === 401) location.assign("/login");
  throw new ApiError(body.error ?? "failed", said(body.message) || t("app.failed", { status: reply.status }), reply.status);
}

export async function get(path, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== ""));
  return (await told(await fetch(`/api/${path}${query.size ? `?${query}` : ""}`))).json();
}

export async function send(method, path, body) {
  const reply = await fetch(`/api/${path}`, {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return (await told(reply)).json();
}

// One turn through Gradio's queue: a POST that names it, then its events (server-sent; Gradio sends each yielded value).
export async function turn(call, onEvent) {
  const joined = await told(await fetch("/gradio_api/call/turn", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ data: [call] }),
  }));
  const { event_id: id } = await joined.json();
  const reply = await told(await fetch(`/gradio_api/call/turn/${id}`));
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new TypeError("the stream broke off");
    buffer += value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const block = buffer.slice(0, end);
      buffer = buffer.slice(end + 2);
      const kind = /^event: (.*)$/m.exec(block)?.[1];
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (kind === "generating") { const [event] = JSON.parse(data); if (event) onEvent(event); }
      else if (kind === "complete") return;
      else if (kind === "error") throw new ApiError("failed", t("app.failed", { status: "stream" }), 500);
    }
  }
}

// A file of chats: onShare while it is sent, onLine(object) for each line of the reply; resolves to the last of them.
export function importFile(file, onShare, onLine) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    let seen = 0, last = null;
    const lines = () => {
      if (request.status !== 200) return;
      const end = request.responseText.lastIndexOf("\n");
      for (const line of request.responseText.slice(seen, end + 1).split("\n")) if (line) { last = JSON.parse(line); onLine(last); }
      seen = Math.max(seen, end + 1);
    };
    request.open("POST", `/api/import?${new URLSearchParams({ name: file.name })}`);
    request.upload.onprogress = (event) => { if (event.lengthComputable) onShare(event.loaded / event.total); };
    request.onprogress = lines;
    request.onload = () => {
      lines();
      let body = last ?? {};
      if (request.status !== 200) try { body = JSON.parse(request.responseText); } catch { body = { error: "failed" }; }
      if (body.error) reject(new ApiError(body.error, said(body.message) || t("app.failed", { status: request.status }), request.status));
      else if (!last || last.skipped === undefined) reject(new TypeError("connection lost"));
      else resolve(last);
    };
    request.onerror = () => reject(new TypeError("connection lost"));
    request.onabort = () => reject(new ApiError("cancelled", "", 0));
    request.send(file);
  });
  return { done, cancel: () => request.abort() };
}

export function upload(file, name, sessionId, onShare) {
  const request = new XMLHttpRequest();
  const query = new URLSearchParams({ name });
  if (sessionId) query.set("session_id", sessionId);
  const done = new Promise((resolve, reject) => {
    request.open("PUT", `/api/uploads?${query}`);
    request.responseType = "json";
    request.upload.onprogress = (event) => { if (event.lengthComputable) onShare(event.loaded / event.total); };
    request.onload = () => {
      if (request.status < 300) resolve(request.response);
      else reject(new ApiError(request.response?.error ?? "failed", said(request.response?.message) || t("app.failed", { status: request.status }), request.status));
    };
    request.onerror = () => reject(new TypeError("connection lost"));
    request.onabort = () => reject(new ApiError("cancelled", "", 0));
    request.send(file);
  });
  return { done, cancel: () => request.abort() };
}
