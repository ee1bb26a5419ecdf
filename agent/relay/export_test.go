package relay

import "time"

// Hurry shortens how long last words may wait. It comes before the first Start.
func (r *Relay) Hurry(patience time.Duration) { r.patience = patience }
