"""What a person would see on a page, asked of Chromium: expressions of JavaScript, each with what it returns."""

from __future__ import annotations

OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"

TEXT = "document.body.innerText"

TOO_WIDE = """
(() => {
  const edge = document.documentElement.clientWidth + 0.5;
  const page = document.documentElement.scrollWidth > edge ? ['the page: ' + document.documentElement.scrollWidth] : [];
  const wide = [...document.querySelectorAll('body *')].filter(one => {
    const box = one.getBoundingClientRect();
    return box.width > 1 && (box.right > edge || box.left < -0.5) && getComputedStyle(one).clipPath === 'none';
  });
  return page.concat(wide.map(one => one.tagName + '.' + (one.className.baseVal ?? one.className)));
})()
"""
"""Every element that reaches beyond the page's width."""

OUT_OF_THEIR_BOXES = """
[...document.querySelectorAll('.chain .image, .chain g:has(> .guest)')].flatMap(group => {
  const box = group.querySelector('rect').getBBox();
  return [...group.querySelectorAll('text')].filter(text => {
    const at = text.getBBox();
    return at.x < box.x || at.x + at.width > box.x + box.width;
  }).map(text => text.textContent);
})
"""
"""Every text of a drawing that is wider than the box in which it stands."""

BROKEN_WORDS = """
[...document.querySelectorAll('.timing th, .timing .num, .chip, thead th')].filter(one => {
  const text = [...one.childNodes].find(node => node.nodeType === 3 && node.data.trim());
  if (!text || /[ -]/.test(text.data.trim())) return false;
  const range = document.createRange(); range.selectNodeContents(text);
  return new Set([...range.getClientRects()].filter(box => box.width > 1).map(box => Math.round(box.top))).size > 1;
}).map(one => one.textContent)
"""
"""Every label of one word that does not stand in one line."""

PALE = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const paint = one => {
    const style = getComputedStyle(one);
    const inSvg = one instanceof SVGElement && one.tagName !== 'svg';
    const colour = parse(inSvg ? style.fill : style.backgroundColor);
    if (colour.length < 3 || (inSvg && ['text', 'g', 'line'].includes(one.tagName))) return null;
    return colour.length > 3 && colour[3] === 0 ? null : colour;
  };
  const bright = ([r, g, b]) => {
    const part = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const ratio = (a, b) => { const [x, y] = [bright(a), bright(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const behind = (one, x, y) => {
    const stack = document.elementsFromPoint(x, y);
    const under = stack.slice(Math.max(0, stack.indexOf(one)));
    for (const each of under) { const colour = paint(each); if (colour) return colour; }
    return parse(getComputedStyle(document.body).backgroundColor);
  };
  const found = [], looked = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const one = node.parentElement;
    if (!node.data.trim() || ['TITLE', 'DESC', 'title', 'desc'].includes(one.tagName) || looked.has(one)) continue;
    looked.add(one);
    const range = document.createRange(); range.selectNodeContents(node);
    const box = range.getClientRects()[0];
    if (!box || box.width < 2) continue;
    const style = getComputedStyle(one);
    const ink = parse(one instanceof SVGElement ? style.fill : style.color);
    const got = ratio(ink, behind(one, box.left + box.width / 2, box.top + box.height / 2));
    if (got < 4.5) found.push([node.data.trim().slice(0, 30), style.color, got.toFixed(2)].join(' '));
  }
  for (const bar of document.querySelectorAll('td.bar rect')) {
    const got = ratio(parse(getComputedStyle(bar).fill), parse(getComputedStyle(bar.parentElement).backgroundColor));
    if (got < 3) found.push([bar.getAttribute('class'), got.toFixed(2)].join(' '));
  }
  return [looked.size, found];
})()
"""
"""How many texts were measured, and those whose contrast is below 4.5 (WCAG AA), or bars below 3, as rendered."""

NOT_FOR_EVERYBODY = """
[
  ...[...document.querySelectorAll('table')].filter(one => !one.querySelector('thead th[scope=col]')).map(() => 'table'),
  ...[...document.querySelectorAll('tbody tr')].filter(one => !one.querySelector('th[scope=row]')).map(() => 'row'),
  ...[...document.querySelectorAll('svg')].filter(one =>
    one.getAttribute('aria-hidden') !== 'true' && !one.querySelector('title')).map(() => 'svg'),
  ...(document.documentElement.lang ? [] : ['lang']), ...(document.title ? [] : ['title']),
  ...(document.querySelectorAll('h1').length === 1 ? [] : ['h1']),
  ...[...document.querySelectorAll('a')].filter(one => !document.querySelector(one.getAttribute('href'))).map(
    one => one.getAttribute('href')),
]
"""
"""What a screen reader would miss: headers of tables, titles of drawings; and links that lead nowhere."""

STRANGE = "[...document.querySelectorAll('body script, img, iframe, object, form, input, body style, body b')].length"
"""How many elements there are that no page of ours has."""
