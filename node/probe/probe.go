// Package probe answers a kubelet's probes: does a daemon of this node live, is it ready.
package probe

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// patience is how long a daemon has to answer; kubelet's own limit is 10 s.
const patience = 5 * time.Second

// Check asks one of a daemon's health addresses. Anything from 200 to 399 is good; else the error says what the daemon
// said of itself.
func Check(ctx context.Context, daemon, address, path string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", daemon, err)
	}
	direct := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // a proxy of the environment is not asked
	resp, err := direct.Do(req)
	if err != nil {
		return fmt.Errorf("%s does not answer on %s: %w; is it running on this node?", daemon, address, err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("%s is not well (%s):\n%s", daemon, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
