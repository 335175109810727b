package certificate

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/muslin-net/muslin/internal/rpc"
)

// What a certificate can lack. The first does not keep it from being used.
var (
	errDue    = errors.New("it is time for a new one")
	errEnded  = errors.New("it has ended")
	errOther  = errors.New("it is another node's")
	errSigner = errors.New("it is not signed by the cluster's CA")
)

// judge says what keeps a certificate from being this node's for now; nil means nothing.
func judge(cert *x509.Certificate, pool *x509.CertPool, node string, now time.Time) error {
	id, err := rpc.IdentityOf(cert)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errOther, err)
	case id != (rpc.Identity{Role: "node", Name: node}):
		return fmt.Errorf("%w: it is for %s, not for node/%s", errOther, id, node)
	case !now.Before(cert.NotAfter):
		return fmt.Errorf("%w: at %s", errEnded, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if now.Before(cert.NotBefore) { // this node's clock is behind; typha's decides
		now = cert.NotBefore
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("%w: %w", errSigner, err)
	}
	return nil
}

// renewal is when to ask for the next certificate if typha's word on it is not known (any more): after two thirds, which for
// typha's usual ones is what it says itself.
func renewal(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)
}

// wait is how long to sleep until a moment of the clock. It is short: timers stand still while a machine is suspended, and
// clocks are set.
func wait(until, now time.Time) time.Duration {
	return min(max(until.Sub(now.Round(0)), 0), look)
}

// look is how often the clock and the files are looked at.
const look = 30 * time.Second

// pause is how long to wait before the next try after a number of failed ones: at first typha may just be starting.
func pause(failed int) time.Duration {
	d := min(time.Second<<min(failed, 10), look)
	return d/2 + rand.N(d/2) // nodes that lost typha together do not come back together
}
