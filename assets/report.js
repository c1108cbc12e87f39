// Draws the figures of a report: each place has its data in the script element after it.
const places = [...document.querySelectorAll(".place")];
for (const place of places) {
  const { data, layout, config } = JSON.parse(place.nextElementSibling.textContent);
  place.replaceChildren();
  Plotly.newPlot(place, data, layout, config);
}
// On paper, figures have the width of the page, and no table is closed.
const details = [...document.querySelectorAll("details")];
let open = [];
addEventListener("beforeprint", () => {
  open = details.map((one) => one.open);
  for (const one of details) one.open = true;
  for (const place of places) Plotly.relayout(place, { width: 660 });
});
addEventListener("afterprint", () => {
  details.forEach((one, i) => (one.open = open[i]));
  for (const place of places) Plotly.relayout(place, { width: null, autosize: true });
});
