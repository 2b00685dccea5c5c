'use strict';
// Cases: filters, search and paging.
const PAGE = 12;
const filters = byId('filters');
let page = 0;

// As hada.evaluate.pages.choose: a place counts as reached only if every order of a tie reaches it.
function outcomeOf(places, run, others) {
  const [low, high] = places[run];
  const bestLow = Math.min(...others.map(name => places[name][0]));
  const bestHigh = Math.min(...others.map(name => places[name][1]));
  for (const [k, size] of [[1, 2], [10, 1]]) {
    if (high <= k && bestLow > k) return size;
    if (low > k && bestHigh <= k) return -size;
  }
  return 0;
}

function showCases() {
  const value = name => byId(name).value;
  const others = value('against') ? [value('against')] : DATA.models;
  const words = value('text').toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = {won: o => o > 0, lost: o => o < 0, '': () => true}[value('outcome')]
    || (o => o === Number(value('outcome')));
  const found = [];
  for (const article of all('.card')) {
    const one = DATA.cases[Number(article.dataset.case)];
    const outcome = outcomeOf(one.places, DATA.fusion, others);
    const badge = article.querySelector('.badge');
    badge.textContent = DATA.outcomes[String(outcome)];
    badge.classList.toggle('won', outcome > 0);
    badge.classList.toggle('lost', outcome < 0);
    article.hidden = true;
    if (wanted(outcome) && (!value('way') || one.way === value('way'))
        && (!value('how') || one.how.includes(value('how')))
        && words.every(word => one.text.includes(word))) found.push(article);
  }
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  page = Math.max(0, Math.min(page, pages - 1));
  for (const article of found.slice(page * PAGE, (page + 1) * PAGE)) {
    article.hidden = false;
    fill(article);
  }
  byId('count').textContent = found.length + ' of ' + DATA.cases.length + ' cases'
    + (found.length ? '' : '; take a filter back to see more');
  byId('where').textContent = 'page ' + (page + 1) + ' of ' + pages;
  byId('previous').disabled = page === 0;
  byId('next').disabled = page === pages - 1;
}

if (filters) {
  for (const kind of ['input', 'change']) {
    filters.addEventListener(kind, () => { page = 0; showCases(); });
  }
  for (const [name, step] of [['previous', -1], ['next', 1]]) {
    byId(name).addEventListener('click', () => {
      page += step;
      showCases();
      byId('count').scrollIntoView({block: 'start'});
    });
  }
  showCases();
}
fill(byId('hubs'));
const asked = tabs.find(tab => '#view-' + tab.getAttribute('aria-controls') === location.hash);
show(asked || tabs[0], false);
