// Copy buttons: <button type="button" data-copy="id of an input" hidden>. Without this script they stay hidden, and the
// text is selected with one click.
(function () {
  "use strict";
  function show(root) {
    if (!navigator.clipboard) return; // only in secure contexts: over HTTPS, or on this machine
    root.querySelectorAll("button[data-copy]").forEach(function (button) { button.hidden = false; });
  }
  document.addEventListener("click", function (event) {
    var button = event.target.closest && event.target.closest("button[data-copy]");
    if (!button) return;
    var input = document.getElementById(button.dataset.copy);
    input.select();
    navigator.clipboard.writeText(input.value).then(function () {
      button.textContent = "Copied";
    }, function () {
      input.focus();
    });
  });
  document.addEventListener("focusin", function (event) {
    if (event.target.matches && event.target.matches("input.copyable")) event.target.select();
  });
  show(document);
  document.addEventListener("htmx:afterSwap", function () { show(document); });
})();
