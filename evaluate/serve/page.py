"""The page of a server: a query box, a place to drop an image, results with their pictures.

All that comes from the server is put in as text, and the policy of the page runs no script but its
own file.
"""

from __future__ import annotations

import html

from hada.evaluate.pages.rendering import asset

PAGE = """
<h1>Search</h1><p id="about" aria-live="polite"></p>
<form id="form">
<label for="text">A sentence</label>
<div class="row"><input id="text" type="search" maxlength="4000" autocomplete="off"
placeholder="two hearts on a mint background"><button>Search</button></div>
<div class="row"><label id="drop" tabindex="0">or an image: choose it, drop it here, or paste it
<input id="file" type="file" accept="image/*"></label></div>
<div class="row"><label>find <select id="find"><option value="">the other kind</option>
<option>images</option><option>captions</option></select></label>
<label>split <select id="split"></select></label>
<label>results <input id="top" type="number" min="1" max="100" value="12"></label></div>
</form>
<form id="unlock" hidden><label for="token">This server asks for its token</label>
<div class="row"><input id="token" type="password" autocomplete="off"><button>Unlock</button></div>
</form>
<p id="status" role="status"></p><ol id="results"></ol>
<p><a href="/docs">The API</a></p>
"""

STYLE = (
    asset("templates/base.css")
    + """
* { box-sizing: border-box; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; align-items: center; }
input, select, button { font: inherit; padding: .45rem .6rem; border: 1px solid var(--rule);
  border-radius: 6px; color: inherit; background: var(--paper); }
#text, #token { flex: 1 1 12rem; min-width: 0; } button { cursor: pointer; }
#top { width: 4.5rem; }
#drop { flex: 1; min-width: 0; border: 2px dashed var(--rule); border-radius: 8px; padding: 1rem;
  color: var(--soft); } #drop.over { border-color: var(--dot); }
#file { display: block; width: 100%; margin-top: .4rem; }
#results { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: 1.2rem; padding: 0; list-style: none; }
#results li { overflow-wrap: anywhere; } #results img { width: 100%; aspect-ratio: 1;
  object-fit: contain; border-radius: 6px; background: var(--rule); }
.score { font-weight: 600; color: var(--ink); }
.own { font-size: .85rem; } .id { font-size: .8rem; }
pre { overflow-x: auto; }
[hidden] { display: none; }
"""
)

SCRIPT = """
'use strict';
const $ = id => document.getElementById(id);
let asked = 0, urls = [];
function headers(more) {
  const token = sessionStorage.getItem('token');
  return token ? {...more, 'authorization': 'Bearer ' + token} : more;
}
async function call(path, options = {}) {
  const answer = await fetch(path, {...options, headers: headers(options.headers || {})});
  $('unlock').hidden = answer.status !== 401;
  if (answer.ok) return answer;
  let said = 'the server answered ' + answer.status;
  try { said = (await answer.json()).error; } catch { }
  throw new Error(said);
}
function add(parent, tag, text, kind) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  parent.append(element);
  return element;
}
async function show(image, path, mine) {
  try {
    const url = URL.createObjectURL(await (await call(path)).blob());
    if (mine !== asked) return URL.revokeObjectURL(url);
    urls.push(url);
    image.src = url;
  } catch { image.remove(); }
}
function draw(found, mine) {
  urls.forEach(url => URL.revokeObjectURL(url));
  urls = [];
  $('results').replaceChildren();
  for (const hit of found.results) {
    const item = add($('results'), 'li', '');
    const image = document.createElement('img');
    image.alt = (hit.captions || [hit.id])[0] || hit.id;
    if (hit.picture) { item.append(image); show(image, hit.picture, mine); }
    add(item, 'div', hit.place + '. ' + hit.score.toFixed(3), 'score');
    const own = Object.entries(hit.models || {}).map(([name, score]) =>
      name + ' ' + score.toFixed(3)).join(' \\u00b7 ');
    if (own) add(item, 'div', own, 'own');
    add(item, 'div', (hit.captions || []).slice(0, 2).join(' / '));
    add(item, 'div', hit.id, 'id');
  }
}
async function search(start) {
  const mine = ++asked, began = performance.now();
  $('status').textContent = 'searching ...';
  try {
    const found = await (await start()).json();
    if (mine !== asked) return;
    draw(found, mine);
    const took = Math.round(performance.now() - began);
    $('status').textContent = found.results.length + ' ' + found.find + ' of ' + found.split +
      ' in ' + took + ' ms';
  } catch (error) {
    if (mine === asked) $('status').textContent = String(error.message || error);
  }
}
function by_text() {
  const body = {text: $('text').value, top: Number($('top').value) || 12,
    find: $('find').value || 'images'};
  if ($('split').value) body.split = $('split').value;
  search(() => call('/api/text', {method: 'POST', body: JSON.stringify(body),
    headers: {'content-type': 'application/json'}}));
}
function by_image(file) {
  if (!file) return;
  const query = new URLSearchParams({top: $('top').value || '12',
    find: $('find').value || 'captions'});
  if ($('split').value) query.set('split', $('split').value);
  search(() => call('/api/image?' + query, {method: 'POST', body: file,
    headers: {'content-type': file.type || 'application/octet-stream'}}));
}
async function begin() {
  try {
    const info = await (await call('/api/info')).json();
    $('split').replaceChildren();
    for (const name of Object.keys(info.splits)) add($('split'), 'option', name);
    const sizes = Object.entries(info.splits).map(([name, size]) => name + ': ' +
      size.images.toLocaleString() + ' images, ' + size.captions.toLocaleString() + ' captions');
    $('about').textContent = info.kind + ' ' + info.name + ' on ' + info.dataset + ' (' +
      sizes.join('; ') + ')';
    $('status').textContent = '';
  } catch (error) { $('status').textContent = String(error.message || error); }
}
$('form').addEventListener('submit', event => { event.preventDefault(); by_text(); });
$('unlock').addEventListener('submit', event => { event.preventDefault();
  sessionStorage.setItem('token', $('token').value); begin(); });
$('file').addEventListener('change', () => by_image($('file').files[0]));
for (const kind of ['dragover', 'dragleave', 'drop'])
  document.addEventListener(kind, event => { event.preventDefault();
    $('drop').classList.toggle('over', kind === 'dragover');
    if (kind === 'drop') by_image(event.dataTransfer.files[0]); });
document.addEventListener('paste', event => {
  const file = [...event.clipboardData.files][0];
  if (file) by_image(file); });
begin();
"""


def framed(title: str, body: str, *, script: bool = True) -> str:
    """A whole page of the server; its policy is a header."""
    tail = '<script src="/page.js"></script>' if script else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="stylesheet" href="/page.css"></head>'
        f"<body>{body}{tail}</body></html>"
    )
