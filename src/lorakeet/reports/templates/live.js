"use strict";
(() => {
  let shown = document.getElementById("data").textContent;
  async function refresh() {
    try {
      const text = await (await fetch(location.href, { cache: "no-store" })).text();
      const found = new DOMParser().parseFromString(text, "text/html");
      const data = found.getElementById("data"), page = found.getElementById("page");
      if (data && page && data.textContent !== shown) {
        const isOpen = [...document.querySelectorAll("details")].map((one) => one.open);
        shown = document.getElementById("data").textContent = data.textContent;
        document.getElementById("page").replaceWith(document.adoptNode(page));
        document.querySelectorAll("details").forEach((one, i) => { if (i in isOpen) one.open = isOpen[i]; });
        window.lorakeet.drawn.clear();
        window.lorakeet.draw();
      }
    } catch (error) { /* the server has ended; what was seen last stays */ }
    setTimeout(refresh, 5000);
  }
  setTimeout(refresh, 5000);
})();
