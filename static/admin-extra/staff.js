// What the theme leaves out for those who hear a page: where its content begins, and a name for each box that scrolls.
document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("main")?.setAttribute("role", "main");
  document.querySelectorAll("[data-simplebar]").forEach((box, place) => {
    box.setAttribute("data-simplebar-aria-label", box.id === "nav-sidebar-apps" ? "Pages" : `Part ${place + 1}, scrollable`);
  });
});
