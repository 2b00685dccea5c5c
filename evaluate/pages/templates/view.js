'use strict';
// What all scripts of a page share: its data, tabs, dialogs, tips and downloads.
const DATA = JSON.parse(document.getElementById('page-data').textContent);
const PICTURES = JSON.parse(document.getElementById('page-pictures').textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = name => document.getElementById(name);

function save(name, type, text) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Tips: of elements with data-tip by hover, focus or tap, and of the charts.
const tip = byId('tip');
function showTip(lines, x, y) {
  tip.replaceChildren(...lines.map(([name, value]) => {
    const line = document.createElement('div');
    const bold = document.createElement('b');
    bold.textContent = name ? name + ': ' : '';
    line.append(bold, String(value));
    return line;
  }));
  tip.hidden = false;
  const limit = document.documentElement;
  const left = Math.min(x + 12, limit.clientWidth - tip.offsetWidth - 6);
  const below = y + 18 + tip.offsetHeight < limit.clientHeight;
  tip.style.left = Math.max(6, left) + 'px';
  tip.style.top = Math.max(6, below ? y + 18 : y - tip.offsetHeight - 12) + 'px';
}
function hideTip() { tip.hidden = true; }
function tipOf(event) {
  const owner = event.target.closest && event.target.closest('[data-tip]');
  if (!owner) return;
  const box = owner.getBoundingClientRect();
  showTip([['', owner.dataset.tip]], box.left, box.bottom - 12);
}
for (const kind of ['pointerover', 'focusin', 'click']) document.addEventListener(kind, tipOf);
for (const kind of ['pointerout', 'focusout']) {
  document.addEventListener(kind, event => {
    const touch = event.pointerType === 'touch';
    if (!touch && event.target.closest && event.target.closest('[data-tip]')) hideTip();
  });
}
document.addEventListener('pointerdown', hideTip);
document.addEventListener('scroll', hideTip, {passive: true, capture: true});
document.addEventListener('keydown', event => { if (event.key === 'Escape') hideTip(); });

// Tabs.
const tabs = all('[role=tab]');
function show(tab, focus) {
  for (const other of tabs) {
    const on = other === tab;
    other.setAttribute('aria-selected', on);
    other.tabIndex = on ? 0 : -1;
    byId(other.getAttribute('aria-controls')).hidden = !on;
  }
  if (focus) tab.focus();
  history.replaceState(null, '', '#view-' + tab.getAttribute('aria-controls'));
  document.dispatchEvent(new Event('viewshown'));
}
for (const [number, tab] of tabs.entries()) {
  tab.addEventListener('click', () => show(tab, false));
  tab.addEventListener('keydown', event => {
    const step = {ArrowRight: 1, ArrowLeft: -1, Home: -number, End: tabs.length - 1 - number};
    if (!(event.key in step)) return;
    event.preventDefault();
    show(tabs[(number + step[event.key] + tabs.length) % tabs.length], true);
  });
}

// Dialogs: Escape closes them, and so does a click outside.
for (const dialog of all('dialog')) {
  all('[data-close]', dialog).forEach(b => b.addEventListener('click', () => dialog.close()));
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
}
byId('open-provenance').addEventListener('click', () => byId('provenance').showModal());

// Images: put in where they are seen first, so that a long page opens at once.
function fill(root) {
  for (const image of all('img[data-picture]:not([src])', root)) {
    image.src = PICTURES[Number(image.dataset.picture)];
  }
}
document.addEventListener('click', event => {
  const shot = event.target.closest && event.target.closest('.shot');
  if (!shot) return;
  const frame = byId('large').querySelector('.frame');
  frame.replaceChildren(...all('img', shot).map(image => image.cloneNode()));
  const cut = shot.classList.contains('cut');
  frame.classList.toggle('cut', cut);
  // As large as the window allows, whatever the file's size; heat lies on exactly the image.
  const image = shot.querySelector('img');
  const ratio = cut ? 1 : image.naturalWidth / image.naturalHeight || 1;
  frame.style.width = Math.min(0.8 * innerWidth, 0.7 * innerHeight * ratio, 640) + 'px';
  byId('large').querySelector('p').textContent = shot.dataset.large;
  byId('large').showModal();
});
