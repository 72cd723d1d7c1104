// Dark or light: as the reader chose, else as TensorBoard or the system has it.

const KEY = "neurocorr-theme";

/** The system's choice, until the reader's. */
export function ownTheme(redraw) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", redraw);
  return chosen(() => system.matches);
}

/** TensorBoard's choice, until the reader's. */
export function tensorBoardTheme(redraw) {
  const { body } = parent.document;
  new MutationObserver(redraw).observe(body, { attributes: true, attributeFilter: ["class"] });
  return chosen(() => body.classList.contains("dark-mode"), false);
}

function chosen(given, remembered = true) {
  let own = remembered ? recalled() : null;
  const dark = () => (own === null ? given() : own === "dark");
  return {
    dark,
    toggle() {
      own = dark() ? "light" : "dark";
      if (given() === (own === "dark")) own = null; // as it is around: follow that again
      try {
        if (remembered && own) localStorage.setItem(KEY, own);
        else localStorage.removeItem(KEY);
      } catch {
        // no storage in some frames: the choice lasts as long as the page
      }
    },
  };
}

function recalled() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}
