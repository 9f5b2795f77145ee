class Killer: pass
