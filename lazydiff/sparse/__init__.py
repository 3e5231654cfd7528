"""Networks of convolutions computed on a part of a map, from what an earlier pass knew of the rest."""
