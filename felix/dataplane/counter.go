package dataplane

import "context"

// Counter is what the kernel counted at the rules of a chain that have one comment, over both address families. A chain that
// is rewritten begins at 0: counters go back to it when a policy changes, and when felix replaces what others changed.
//
// Only packets that policy is asked about are counted: the first ones of a connection, as those of established ones pass
// before. A rule that decides nothing has no counter.
type Counter struct {
	Chain          string // as desired names it
	Comment        string // as desired has it: "np/shop/web ingress 3"
	Packets, Bytes uint64
}

// Counters is a rule driver's way to read what the kernel counted. It costs a listing of all rules, and does not keep the
// driver from programming meanwhile.
type Counters interface {
	Counters(ctx context.Context) ([]Counter, error)
}
