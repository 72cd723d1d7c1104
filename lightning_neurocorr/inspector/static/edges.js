// Says at which side of a box that scrolls there is more: the style sheet fades that edge.

const BOXES = ".scroll, .grid";

/** Mark the boxes below `root`; to be called when something was drawn. */
export function markEdges(root) {
  for (const box of root.querySelectorAll(BOXES)) mark(box);
}

/** Mark boxes when they are scrolled, or what they are in is opened. */
export function watchEdges(root) {
  const later = (act) => requestAnimationFrame(act); // the layout is made once a frame anyway
  root.addEventListener("scroll", ({ target }) => target.matches?.(BOXES) && later(() => mark(target)), { capture: true, passive: true });
  root.addEventListener("toggle", () => later(() => markEdges(root)), { capture: true });
}

function mark(box) {
  const before = box.scrollLeft > 1;
  const after = box.scrollLeft + box.clientWidth < box.scrollWidth - 1;
  box.dataset.more = before && after ? "both" : before ? "left" : after ? "right" : "";
}
