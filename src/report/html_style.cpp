#include "report/html_style.h"

namespace lcomp::report {
namespace {

constexpr std::string_view kStyle = R"css(
:root {
  color-scheme: light dark;
  --bg: #f6f6f3; --card: #ffffff; --ink: #1d1f23; --muted: #62666e; --line: #e2e2dc; --soft: #f0f0ec;
  --accent: #2f55c4; --good: #1a7f4e; --warn: #8a5a00; --warn-bg: #fff4d6; --warn-line: #e9c46a;
  --bad: #b3261e; --bad-bg: #fdeceb; --bad-line: #eda9a4; --info-bg: #e9effc; --info-line: #a9bff0;
  --weak: #1d1f23; --strong: #ffffff; --mark: #0b0c0e;
  --h0: #fdf1dc; --h1: #fdddb5; --h2: #fec68c; --h3: #fda96f; --h4: #f98a5f;
  --h5: #ee6f60; --h6: #cf4668; --h7: #a93576; --h8: #7c2580; --h9: #4c1a78;
  --b0: #eaf1fb; --b1: #d4e3f7; --b2: #b9d1f0; --b3: #9abce7; --b4: #78a4dc;
  --b5: #6697d6; --b6: #3f72bd; --b7: #2f5ba3; --b8: #234685; --b9: #183263;
  --d0: #0f766e; --d1: #2f877d; --d2: #6fb6ac; --d3: #a5d3cb; --d4: #d8ece8;
  --d5: #fbe3d6; --d6: #f6bfa3; --d7: #ea9070; --d8: #c74d37; --d9: #a32b23;
  --load: #8a8f98; --calibrate: #4c78c9; --solve: #d9792b; --forward: #3a9d7c; --write: #a46bb5;
  --verify: #c9a227; --evaluate: #4aa3c4; --other: #c2c2bb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #121315; --card: #1a1c1f; --ink: #e9e9e6; --muted: #9ea2aa; --line: #2e3136; --soft: #24272b;
    --accent: #93aefc; --good: #5fd39b; --warn: #f2c96d; --warn-bg: #2e2611; --warn-line: #6d5820;
    --bad: #ff9b93; --bad-bg: #351a19; --bad-line: #7d3632; --info-bg: #1a2440; --info-line: #3a528f;
    --weak: #f3f3f1; --strong: #111214; --mark: #ffffff;
    --h0: #26163b; --h1: #3d1a5b; --h2: #5a2072; --h3: #7c2a7d; --h4: #a0367c;
    --h5: #bd4374; --h6: #e6686a; --h7: #f78f70; --h8: #fdbb87; --h9: #fde9b0;
    --b0: #152238; --b1: #1a2f52; --b2: #203e6e; --b3: #28508c; --b4: #3364a9;
    --b5: #3b71b6; --b6: #6c9dd8; --b7: #8ab2e3; --b8: #b3cff0; --b9: #dceafa;
    --d0: #5eead4; --d1: #39bfae; --d2: #1f7f74; --d3: #205f59; --d4: #1d4744;
    --d5: #4a2a22; --d6: #7a3b2a; --d7: #a34b32; --d8: #e57c58; --d9: #ffa582;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0 0 4px; }
h3 { font-size: 13px; margin: 22px 0 8px; font-weight: 600; }
p { margin: 0 0 10px; }
code, .mono { font: 12.5px/1.5 ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.muted, .lede { color: var(--muted); }
.lede { max-width: 104ch; font-size: 14px; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 14px; margin-bottom: 6px; }
.sub { color: var(--muted); margin-bottom: 18px; overflow-wrap: anywhere; }
.pill { font-size: 12px; font-weight: 600; padding: 2px 11px; border-radius: 99px; border: 1px solid currentColor; }
.pill.done { color: var(--good); } .pill.running { color: var(--accent); }
.pill.interrupted { color: var(--warn); } .pill.failed { color: var(--bad); }
nav { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; margin: 0 0 14px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.box { border: 1px solid; border-radius: 10px; padding: 11px 16px; margin: 0 0 14px; overflow-wrap: anywhere; }
.box p, .box ul { margin: 0; } .box ul { padding-left: 18px; } .box li { margin: 3px 0; }
.box.warn { background: var(--warn-bg); border-color: var(--warn-line); }
.box.warn h2 { color: var(--warn); font-size: 15px; }
.box.failed { background: var(--bad-bg); border-color: var(--bad-line); }
.box.running, .box.interrupted { background: var(--info-bg); border-color: var(--info-line); }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; margin: 0 0 14px;
  background: var(--line); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.tile { background: var(--card); padding: 13px 16px 12px; }
.tile dt { font-size: 12px; color: var(--muted); }
.tile dd { margin: 0; }
.tile .big { font-size: 23px; font-weight: 620; line-height: 1.35; letter-spacing: -.01em; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile .big .from { font-weight: 400; color: var(--muted); font-size: 16px; }
.tile .note { font-size: 12.5px; color: var(--muted); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px 20px;
  margin: 0 0 14px; }
.scroll { overflow-x: auto; margin: 0 -20px; padding: 0 20px;
  background: linear-gradient(to right, var(--card) 24px, transparent) left / 48px 100% no-repeat local,
    linear-gradient(to left, var(--card) 24px, transparent) right / 48px 100% no-repeat local,
    linear-gradient(to right, #0003, transparent) left / 14px 100% no-repeat,
    linear-gradient(to left, #0003, transparent) right / 14px 100% no-repeat; }
td:has(> .swatch) { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: 12.5px; white-space: nowrap; vertical-align: bottom; }
tbody th { font-weight: 500; }
th.num, td.num { text-align: right; white-space: nowrap; }
td.wrap { min-width: 22ch; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 5px 20px; margin: 8px 0 0; font-size: 13.5px; }
dl.facts dt { color: var(--muted); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 6px 44px; }
.ok { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--accent); font-size: 13.5px; }
details[open] summary { margin-bottom: 8px; }
pre { background: var(--soft); border-radius: 8px; padding: 14px 16px; overflow-x: auto; margin: 8px 0 0; }

.maps { position: relative; }
.sr { position: absolute; width: 1px; height: 1px; opacity: 0; margin: 0; }
.seg { display: inline-flex; flex-wrap: wrap; background: var(--soft); border-radius: 9px; padding: 3px; gap: 2px;
  margin: 4px 0 12px; }
.seg label { font-size: 13px; padding: 4px 12px; border-radius: 7px; cursor: pointer; color: var(--muted); }
.heat { table-layout: fixed; border-collapse: separate; border-spacing: 2px; }
.heat.tight { width: max(100%, 86px + var(--n) * 12px); } .heat.snug { width: max(100%, 86px + var(--n) * 32px); }
.heat.roomy { width: min(100%, 86px + var(--n) * 122px); min-width: calc(86px + var(--n) * 44px); }
.heat th, .heat td { border: 0; padding: 0; }
.heat col.name { width: 84px; }
.heat tbody th { position: sticky; left: 0; background: var(--card); font-size: 12.5px; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; padding-right: 8px; vertical-align: middle; z-index: 1; }
.heat thead th { font-size: 10.5px; font-weight: 400; text-align: center; line-height: 1.3; overflow: visible; }
.heat thead th.corner { text-align: left; position: sticky; left: 0; background: var(--card); z-index: 2; }
.heat td { height: 27px; border-radius: 3px; text-align: center; vertical-align: middle; font-size: 11px; cursor: default;
  background: repeating-linear-gradient(135deg, var(--soft) 0 3px, var(--card) 3px 6px); }
.heat.roomy td { height: 40px; font-size: 13.5px; border-radius: 5px; }
.heat td[title]:hover { outline: 2px solid var(--ink); outline-offset: 0; }
.heat td.fell { box-shadow: inset 0 0 0 2px var(--mark), inset 0 0 0 3.5px var(--card); }
.heat td.rung { position: relative; }
.heat td.rung::after { content: ""; position: absolute; top: 3px; right: 3px; width: 5px; height: 5px;
  border-radius: 50%; background: var(--mark); box-shadow: 0 0 0 1.5px var(--card); }
.heat.tight td.rung::after { top: 2px; right: 2px; width: 4px; height: 4px; }
.heat td i { font-style: normal; display: none; }
.legend { display: none; align-items: center; gap: 10px; font-size: 12.5px; color: var(--muted); flex-wrap: wrap;
  margin-top: 10px; }
.legend .ramp { display: inline-flex; border-radius: 4px; overflow: hidden; }
.legend .ramp b { width: 20px; height: 12px; display: block; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 12.5px; color: var(--muted); margin-top: 6px; }
.key b { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 7px; vertical-align: -2px;
  position: relative; background: var(--h2); }
.key b.fell { box-shadow: inset 0 0 0 2px var(--mark), inset 0 0 0 3.5px var(--card); }
.key b.rung::after { content: ""; position: absolute; top: 2px; right: 2px; width: 5px; height: 5px;
  border-radius: 50%; background: var(--mark); box-shadow: 0 0 0 1.5px var(--card); }
.key b.none { background: repeating-linear-gradient(135deg, var(--line) 0 3px, var(--card) 3px 6px);
  box-shadow: inset 0 0 0 1px var(--line); }

.bar { display: flex; height: 20px; border-radius: 6px; overflow: hidden; background: var(--soft); margin: 6px 0 12px; }
.bar > span { min-width: 1px; }
.chart { display: flex; align-items: flex-end; gap: 2px; border-bottom: 1px solid var(--line); min-width: max-content; }
.chart .col { flex: 1 1 0; min-width: 6px; max-width: 64px; height: 100%; display: flex; flex-direction: column;
  justify-content: flex-end; }
.chart .col > span { display: block; } .chart .col > span:first-child { border-radius: 2px 2px 0 0; }
.chart .col:hover { background: var(--soft); }
.chart.tall { height: 130px; } .chart.low { height: 64px; }
.ticks { display: flex; gap: 2px; font-size: 10.5px; color: var(--muted); min-width: max-content; }
.ticks span { flex: 1 1 0; min-width: 6px; max-width: 64px; text-align: center; white-space: nowrap; overflow: visible;
  display: flex; justify-content: center; width: 0; }
.inline { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 12.5px; color: var(--muted); margin: 2px 0 8px; }
.inline .swatch { margin-right: 6px; }
.meter { height: 16px; border-radius: 5px; background: var(--soft); overflow: hidden; margin: 4px 0 12px; }
.meter > span { display: block; height: 100%; background: var(--forward); }
.meterline { display: flex; justify-content: space-between; gap: 12px; font-size: 13.5px; flex-wrap: wrap; }
.histogram { display: flex; align-items: flex-end; gap: 4px; height: 62px; margin-top: 8px; max-width: 420px; }
.histogram span { flex: 1 1 0; background: var(--calibrate); border-radius: 3px 3px 0 0; min-height: 2px; max-width: 44px; }
.histlabels { display: flex; gap: 4px; font-size: 10.5px; color: var(--muted); max-width: 420px; }
.histlabels span { flex: 1 1 0; text-align: center; max-width: 44px; }
td .meter { height: 4px; margin: 4px 0 1px; min-width: 90px; } td .meter > span { background: var(--h6); margin-left: auto; }
.sortable td, .sortable tbody th { white-space: nowrap; } .sortable { font-size: 12.5px; }
table.small { width: auto; min-width: min(100%, 480px); }
footer { color: var(--muted); font-size: 12.5px; margin-top: 20px; }
th button { all: unset; cursor: pointer; } th button:hover { color: var(--ink); }
th button:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--ink); color: var(--bg); font-size: 12.5px;
  line-height: 1.45; padding: 8px 12px; border-radius: 8px; white-space: pre-line; max-width: min(380px, 92vw);
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; box-shadow: 0 4px 18px #0004; }
#tip[hidden] { display: none; } #tip::first-line { font-weight: 600; }

@media (max-width: 900px) { .tiles { grid-template-columns: 1fr 1fr; } }
@media (max-width: 640px) {
  main { padding: 18px 10px 32px; } section { padding: 14px 14px 16px; } .scroll { margin: 0 -14px; padding: 0 14px; }
  h1 { font-size: 21px; } .tile { padding: 10px 12px; }
  .tile .big { font-size: 17px; } .tile .big .from { font-size: 13px; }
  dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: 7px; }
}
@media print {
  :root { --bg: #fff; --soft: #f3f3f3; }
  body { font-size: 11px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; } nav, .seg, #tip { display: none; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 12px 0; }
  .tiles, .box, tr, .chart, .heat { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; margin: 0; padding: 0; } table { font-size: 10px; } th, td { padding-right: 8px; }
  .heat.tight, .heat.snug { width: 100%; } .heat col.name { width: 62px; }
  .heat td { font-size: 7px; height: 18px; } pre { white-space: pre-wrap; }
}
)css";

constexpr std::string_view kScript = R"js(
(() => {
  const tip = document.createElement('div');
  tip.id = 'tip'; tip.hidden = true; tip.setAttribute('role', 'tooltip');
  document.body.append(tip);
  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 6)) + 'px';
    tip.style.top = (y + 18 + box.height > innerHeight ? Math.max(6, y - box.height - 12) : y + 18) + 'px';
  };
  // The title moves to data-tip while the pointer is over it, so that the browser's own tooltip stays away.
  const show = event => {
    const owner = event.target.closest && event.target.closest('[title], [data-tip]');
    if (!owner) { tip.hidden = true; return; }
    if (owner.title) { owner.dataset.tip = owner.title; owner.removeAttribute('title'); }
    tip.textContent = owner.dataset.tip;
    tip.hidden = false;
    place(event.clientX, event.clientY);
  };
  document.addEventListener('pointermove', show);
  document.addEventListener('pointerdown', show);
  document.addEventListener('scroll', () => { tip.hidden = true; }, { passive: true, capture: true });
  document.documentElement.addEventListener('pointerleave', () => { tip.hidden = true; });

  const key = cell => { const raw = cell.dataset.v; return raw === undefined ? cell.textContent : Number(raw); };
  for (const head of document.querySelectorAll('table.sortable thead th')) {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const table = head.closest('table'), body = table.tBodies[0], at = head.cellIndex;
      const up = head.getAttribute('aria-sort') === 'descending';
      for (const other of table.querySelectorAll('th[aria-sort]')) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const order = (a, b) => typeof a === 'number' ? a - b : a.localeCompare(b, undefined, { numeric: true });
      body.append(...[...body.rows].sort((a, b) =>
        (up ? 1 : -1) * order(key(a.cells[at]), key(b.cells[at]))));
    });
  }
  addEventListener('beforeprint', () => {
    for (const folded of document.querySelectorAll('details:not(.long)')) folded.open = true;
  });
})();
)js";

}  // namespace

std::string_view page_style() {
  return kStyle;
}

std::string_view page_script() {
  return kScript;
}

}  // namespace lcomp::report
