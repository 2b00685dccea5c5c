"""How the two shipped models of `scenes` were trained."""
