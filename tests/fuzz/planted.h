// What the sources that plants.py writes ask at each choice: is this bug there? Who asks has come by its place.
#pragma once

constexpr int PLANTS_MAX = 256;
extern int planted_bug;        // which of the bugs is there; -1: none
extern bool* planted_reached;  // of each bug: has a program come by
inline bool planted(int bug) {
  planted_reached[bug] = true;
  return bug == planted_bug;
}
