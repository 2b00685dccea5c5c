'use strict';
const $ = id => document.getElementById(id);
// The last question: its number, the urls of its images, and what it asked by.
let asked = 0, urls = [], query = null, looks = false;
const HEAT = [255, 96, 0], OPAQUE = 200;  // as hada.evaluate.pages.thumbnails
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
  // A sentence is matched with images, an image with captions.
  const opposite = query.find === found.find && looks;
  for (const hit of found.results) {
    const item = add($('results'), 'li', '');
    const image = document.createElement('img');
    image.alt = (hit.captions || [hit.id])[0] || hit.id;
    if (hit.picture) { item.append(image); show(image, hit.picture, mine); }
    add(item, 'div', hit.place + '. ' + hit.score.toFixed(3), 'score');
    const own = add(item, 'div', '', 'own');
    for (const [name, score] of Object.entries(hit.models || {})) {
      add(own, 'span', name);
      add(own, 'span', score.toFixed(3));
      add(own, 'span', (hit.ranks || {})[name] ? 'rank ' + hit.ranks[name].toLocaleString() : '');
    }
    add(item, 'div', (hit.captions || []).slice(0, 2).join(' / '));
    add(item, 'div', hit.id, 'id');
    if (opposite) {
      const button = add(item, 'button', 'What matched', 'look');
      button.type = 'button';
      const by = query;
      button.addEventListener('click', () => look(by, found.split, hit, image));
    }
  }
}
// The part of a square frame that the image covers, in percent; `cut` is the square in its middle.
function place(canvas, image, cut) {
  const most = Math.max(image.naturalWidth, image.naturalHeight) || 1;
  let [width, height] = [100 * image.naturalWidth / most, 100 * image.naturalHeight / most];
  if (cut) width = height = Math.min(width, height);
  canvas.style.width = width + '%';
  canvas.style.height = height + '%';
  canvas.style.left = (100 - width) / 2 + '%';
  canvas.style.top = (100 - height) / 2 + '%';
}
// Heat as pixels, 16 for each patch; the patch that answered a word has a frame.
function paint(canvas, rows, patch) {
  const size = rows.length, step = 16, pen = canvas.getContext('2d');
  canvas.width = canvas.height = size * step;
  rows.forEach((row, y) => row.forEach((heat, x) => {
    pen.fillStyle = 'rgb(' + HEAT.join(' ') + ' / ' + heat * OPAQUE / 255 + ')';
    pen.fillRect(x * step, y * step, step, step);
  }));
  if (!patch) return;
  pen.lineWidth = 3;
  pen.strokeStyle = '#fff';
  pen.strokeRect(patch.column * step + 1.5, patch.row * step + 1.5, step - 3, step - 3);
  pen.strokeStyle = '#000';
  pen.lineWidth = 1;
  pen.strokeRect(patch.column * step + 3, patch.row * step + 3, step - 6, step - 6);
}
async function look(by, split, hit, image) {
  $('look-body').replaceChildren();
  $('look-about').textContent = 'looking ...';
  if (!$('look').open) $('look').showModal();
  try {
    const answer = by.file
      ? await call('/api/look/image?' + new URLSearchParams({id: hit.id, split}), {method: 'POST',
        body: by.file, headers: {'content-type': by.file.type || 'application/octet-stream'}})
      : await call('/api/look', {method: 'POST', headers: {'content-type': 'application/json'},
        body: JSON.stringify({text: by.text, id: hit.id, split})});
    const found = await answer.json();
    if (by !== query) return $('look').close();
    $('look-about').textContent = (by.text || (hit.captions || [])[0] || '') + ' \u2013 ' + hit.id;
    const source = by.file ? URL.createObjectURL(by.file) : image.src;
    if (by.file) urls.push(source);
    drawLook(found, source, image.alt);
  } catch (error) { $('look-about').textContent = String(error.message || error); }
}
function drawLook(found, source, alt) {
  const canvases = {};
  for (const one of found.heats) {
    const part = add($('look-body'), 'section', '');
    const frame = add(part, 'div', '', 'frame'), image = document.createElement('img');
    const canvas = document.createElement('canvas');
    image.alt = 'Heat of ' + one.model + ' on: ' + alt;
    image.addEventListener('load', () => place(canvas, image, one.cut));
    image.src = source;
    frame.append(image, canvas);
    canvases[one.model] = patch => paint(canvas, one.heat, patch);
    canvases[one.model](null);
    add(part, 'p', one.model + (one.most ? ': at most ' + one.most.toFixed(1) + ' times uniform'
      : ': no patch answered a word'));
    if (found.words[one.model]) drawWords(part, found.words[one.model], canvases);
  }
  if (!found.heats.length) $('look-about').textContent += ': no model has square patches to show';
}
function drawWords(part, words, canvases) {
  const line = add(part, 'p', '', 'words'), said = add(part, 'p', 'Choose a word.', 'said');
  for (const word of words) {
    const button = add(line, 'button', word.text);
    button.type = 'button';
    button.style.backgroundColor = 'rgb(' + HEAT.join(' ') + ' / ' + word.heat * 0.6 + ')';
    button.addEventListener('click', () => {
      for (const other of $('look-body').querySelectorAll('.words button'))
        other.setAttribute('aria-pressed', String(other === button));
      for (const name in canvases)
        canvases[name](word.patch && word.patch.model === name ? word.patch : null);
      said.textContent = word.text + ': ' + word.tip;
    });
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
    find: $('find').value || 'images', ranks: true};
  query = {text: body.text, find: 'images'};
  if ($('split').value) body.split = $('split').value;
  search(() => call('/api/text', {method: 'POST', body: JSON.stringify(body),
    headers: {'content-type': 'application/json'}}));
}
function by_image(file) {
  if (!file) return;
  const words = new URLSearchParams({top: $('top').value || '12',
    find: $('find').value || 'captions', ranks: 'true'});
  if ($('split').value) words.set('split', $('split').value);
  query = {file, find: 'captions'};
  search(() => call('/api/image?' + words, {method: 'POST', body: file,
    headers: {'content-type': file.type || 'application/octet-stream'}}));
}
async function begin() {
  try {
    const info = await (await call('/api/info')).json();
    looks = info.looks;
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
