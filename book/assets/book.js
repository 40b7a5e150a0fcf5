// The theme puts the sidebar's title outside of every landmark; screen readers jump by landmarks.
const sidebar = document.querySelector(".bd-sidebar-primary");
sidebar?.setAttribute("role", "region");
sidebar?.setAttribute("aria-label", "The book");
