// The page at /: talks to this server's own API, in one file without anything from elsewhere.
#pragma once

namespace engine::server {

inline constexpr const char* chat_page = R"html(<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>pagedkv</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }
  #log div { white-space: pre-wrap; margin: .5rem 0; padding: .5rem .8rem; border-radius: .6rem }
  .user { background: #dde8ff } .assistant { background: #eee } .error { background: #fdd }
  form { display: flex; gap: .5rem; margin-top: 1rem } textarea { flex: 1; font: inherit }
  small { color: #666 } input { font: inherit; width: 8rem }
</style>
<h1>pagedkv</h1>
<p><small><span id="model">…</span> · API key <input id="key" type="password"></small></p>
<div id="log"></div>
<form><textarea id="text" rows="3" autofocus></textarea><button>Send</button><button type="button" id="stop">Stop</button></form>
<script>
const $ = id => document.getElementById(id);
let model = null, messages = [], going = null;
const headers = () => ({"Content-Type": "application/json", ...($("key").value && {Authorization: "Bearer " + $("key").value})});
function show(role, text) {
  const box = document.createElement("div");
  box.className = role; box.textContent = text;
  $("log").append(box); box.scrollIntoView();
  return box;
}
async function load() {
  const reply = await fetch("/v1/models", {headers: headers()});
  const json = await reply.json();
  if (!reply.ok) throw new Error(json.error.message);
  model = json.data[0];
  $("model").textContent = model.id + (model.has_chat ? "" : " (no chat template: it continues your text)");
}
async function send(text) {
  if (!model) await load();
  show("user", text);
  const asked = [...messages, {role: "user", content: text}];
  const body = model.has_chat ? {messages: asked} : {prompt: text, max_tokens: 200};
  going = new AbortController();
  const reply = await fetch(model.has_chat ? "/v1/chat/completions" : "/v1/completions", {
    method: "POST", headers: headers(), signal: going.signal,
    body: JSON.stringify({model: model.id, stream: true, ...body})});
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  messages = asked;
  const box = show("assistant", ""), decoder = new TextDecoder();
  let rest = "";
  try {
    for (const reader = reply.body.getReader();;) {
      const {done, value} = await reader.read();
      if (done) break;
      rest += decoder.decode(value, {stream: true});
      const events = rest.split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (event === "data: [DONE]" || event.startsWith(":")) continue;
        const json = JSON.parse(event.slice(6));
        if (json.error) throw new Error(json.error.message);
        for (const choice of json.choices) box.textContent += choice.text ?? choice.delta.content ?? "";
      }
    }
  } finally {
    messages.push({role: "assistant", content: box.textContent});
  }
}
$("text").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); document.forms[0].requestSubmit(); }
};
$("stop").onclick = () => going?.abort();
document.forms[0].onsubmit = async event => {
  event.preventDefault();
  const text = $("text").value;
  $("text").value = "";
  try { await send(text); } catch (error) { if (error.name !== "AbortError") show("error", error.message); }
};
load().catch(error => { $("model").textContent = error.message; });
</script>
)html";

}  // namespace engine::server
