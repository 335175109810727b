package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/internal/rpc"
)

// Why something was refused: the values of the label reason of typha_refused_total. There are no others, whatever clients do.
const (
	refusedHandshake = "handshake" // no TLS, no certificate, one of another CA, one that has ended, or a handshake that nobody went on with
	refusedProtocol  = "protocol"  // what came is no HTTP/2, or against its rules
	refusedIdentity  = "identity"  // the certificate says no role and name
	refusedDenied    = "denied"    // the certificate, or the token, does not allow this
	refusedUnknown   = "unknown"   // there is no such method
	refusedGarbled   = "garbled"   // a message does not parse
	refusedOversized = "oversized" // a message, or its metadata, is too large
	refusedInvalid   = "invalid"   // a request makes no sense
	refusedStale     = "stale"     // the epoch of the node's addresses is another one
	refusedTaken     = "taken"     // it is another node's already
	refusedLimit     = "limit"     // too much at once
	refusedEndpoint  = "endpoint"  // an endpoint of a report, the others of which were taken
	refusedAddress   = "address"   // an address of a call, the others of which were taken
)

var refusedReasons = []string{
	refusedHandshake, refusedProtocol, refusedIdentity, refusedDenied, refusedUnknown, refusedGarbled, refusedOversized, refusedInvalid,
	refusedStale, refusedTaken, refusedLimit, refusedEndpoint, refusedAddress,
}

const (
	// refusedQuiet is for how long the same is not logged again: clients try again and again.
	refusedQuiet = 10 * time.Minute
	// refusedKept bounds what is remembered of what was logged. Beyond it nothing is logged, and all is counted.
	refusedKept = 4096
	// longestText is how much of what a client sent is said again.
	longestText = 512
)

// refusal is an error of a call with the reason that it is counted by. Where there is none, the code tells it.
type refusal struct {
	reason string
	st     *status.Status
}

func refuse(reason string, code codes.Code, format string, args ...any) error {
	return &refusal{reason: reason, st: status.Newf(code, format, args...)}
}

func (r *refusal) Error() string { return r.st.Err().Error() }

// GRPCStatus is what the client is told.
func (r *refusal) GRPCStatus() *status.Status { return r.st }

// reasonOf tells by which reason an error of a call is counted; empty if it is not the client's doing.
func reasonOf(err error) string {
	if r := (*refusal)(nil); errors.As(err, &r) {
		return r.reason
	}
	return map[codes.Code]string{
		codes.Unauthenticated: refusedIdentity, codes.PermissionDenied: refusedDenied, codes.InvalidArgument: refusedInvalid,
		codes.Unimplemented: refusedUnknown,
	}[status.Code(err)]
}

// unread marks an error of reading a request, which package grpc tells by codes that others use too.
func unread(err error) error {
	st, ok := status.FromError(err)
	switch {
	case !ok || st == nil:
		return err
	case st.Code() == codes.ResourceExhausted:
		return &refusal{reason: refusedOversized, st: st}
	case st.Code() == codes.Internal:
		return &refusal{reason: refusedGarbled, st: st}
	}
	return err
}

// brief is an error without most of a long text: whoever sends a megabyte as a name need not get it back.
func brief(err error) error {
	st, ok := status.FromError(err)
	if !ok || st == nil || len(st.Message()) <= 4*longestText {
		return err
	}
	return refuse(reasonOf(err), st.Code(), "%s", shortened(st.Message(), 4*longestText))
}

// shortened is a text of a client's that is not longer than it may be.
func shortened(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-len("…")], "") + "…" // without half of a character at the end
}

// refusals counts what was refused, and logs it: once, not at each retry.
type refusals struct {
	log   *slog.Logger
	total *prometheus.CounterVec

	mu    sync.Mutex // guards all below
	said  map[refusedCase]*utterance
	swept time.Time
}

// refusedCase is what is logged once.
type refusedCase struct{ reason, from, what string }

// utterance is when it was logged, and how often it was not since.
type utterance struct {
	at     time.Time
	unsaid int
}

func newRefusals(log *slog.Logger, total *prometheus.CounterVec) *refusals {
	for _, reason := range refusedReasons {
		total.WithLabelValues(reason) // so that the first one is an increase
	}
	return &refusals{log: log, total: total, said: map[refusedCase]*utterance{}}
}

// note counts a refusal, and logs it unless it was logged a short while ago. what is a method or another thing that is one of
// few; why may be of any length.
func (r *refusals) note(reason, from, what string, why error) {
	if again, tell := r.first(refusedCase{reason, from, what}, time.Now()); tell {
		args := []any{"reason", reason, "from", from, "what", what, "error", shortened(why.Error(), longestText)}
		if again > 0 {
			args = append(args, "before", again)
		}
		r.log.Warn("refused a client", args...)
	}
	r.total.WithLabelValues(reason).Inc() // last: who sees it counted finds why in the log
}

// first tells whether a case is to be logged, and how often it was not since it was logged last.
func (r *refusals) first(c refusedCase, now time.Time) (before int, tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if u := r.said[c]; u != nil {
		if now.Sub(u.at) < refusedQuiet {
			u.unsaid++
			return 0, false
		}
		before, *u = u.unsaid, utterance{at: now}
		return before, true
	}
	if len(r.said) >= refusedKept {
		if now.Sub(r.swept) < time.Minute { // whoever has many addresses must not have all this gone through each time
			return 0, false
		}
		r.swept = now
		maps.DeleteFunc(r.said, func(_ refusedCase, u *utterance) bool { return now.Sub(u.at) >= refusedQuiet })
		if len(r.said) >= refusedKept {
			return 0, false
		}
	}
	r.said[c] = &utterance{at: now}
	return 0, true
}

// caller is who is calling, as far as that is known: role and name of the certificate, or the address.
func caller(ctx context.Context) string {
	if id, err := rpc.Peer(ctx); err == nil {
		return id.String()
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return hostOf(p.Addr)
	}
	return "nobody"
}

// hostOf is an address without its port, which is another one at each attempt.
func hostOf(a net.Addr) string {
	if host, _, err := net.SplitHostPort(a.String()); err == nil {
		return host
	}
	return a.String()
}
