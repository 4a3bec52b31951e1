"use strict";
// A clip on the contact sheet plays while it is pointed at or has the focus.
(() => {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const play = (link) => {
    if (link.querySelector("video")) return;
    const video = document.createElement("video");
    Object.assign(video, { muted: true, loop: true, playsInline: true, src: link.href });
    video.setAttribute("aria-hidden", "true");
    video.addEventListener("error", () => video.remove());
    link.append(video);
    video.play().catch(() => video.remove());
  };
  const stop = (link) => link.querySelector("video")?.remove();
  for (const link of document.querySelectorAll("a[data-clip]")) {
    link.addEventListener("pointerenter", () => play(link));
    link.addEventListener("focus", () => play(link));
    link.addEventListener("pointerleave", () => stop(link));
    link.addEventListener("blur", () => stop(link));
  }
})();
