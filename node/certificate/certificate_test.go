package certificate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/client"
)

// typha signs certificates as typha does, with a CA of the test's, and keeps an account of what it is asked.
type typha struct {
	t     *testing.T
	ca    *pki.CA
	files rpc.Files
	life  time.Duration // until a certificate should be renewed

	mu    sync.Mutex // guards the following
	down  error      // of both calls
	deny  error      // of renewals
	asked []string
}

// become says how it answers from now on, and has it forget what it was asked.
func (y *typha) become(down, deny error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.down, y.deny, y.asked = down, deny, nil
}

func (y *typha) wasAsked() []string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.Clone(y.asked)
}

func (y *typha) Enroll(_ context.Context, e client.Enrollment) (time.Time, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.asked = append(y.asked, "enrol "+e.ServiceAccountToken+e.JoinToken)
	if y.down != nil {
		return time.Time{}, y.down
	}
	require.Equal(y.t, []string{"typha:5474"}, e.Addresses)
	return y.sign(e.Node), nil
}

func (y *typha) Renew(context.Context) (time.Time, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.asked = append(y.asked, "renew")
	if err := errors.Join(y.down, y.deny); err != nil {
		return time.Time{}, err
	}
	return y.sign("n1"), nil
}

// sign stores a certificate. Those of the test's CA are for ten days and an hour, and begin an hour ago.
func (y *typha) sign(node string) time.Time {
	pair, err := y.ca.Issue(pki.Node(node), time.Now())
	require.NoError(y.t, err)
	require.NoError(y.t, client.StoreCA(y.files, pair.CA))
	require.NoError(y.t, os.WriteFile(y.files.Cert, pair.Cert, 0o600))
	return time.Now().Add(y.life)
}

func newCA(t *testing.T) *pki.CA {
	ca, err := pki.NewCA("test", time.Now())
	require.NoError(t, err)
	return ca
}

func newKeeper(t *testing.T) (*Keeper, *typha) {
	dir := t.TempDir()
	k := &Keeper{
		Node: "n1", Log: slog.New(slog.DiscardHandler), Typhas: []string{"typha:5474"},
		Settings: Settings{Token: filepath.Join(dir, "token"), Trust: filepath.Join(dir, "trust.crt")},
		Files:    rpc.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")},
	}
	y := &typha{t: t, ca: newCA(t), files: k.Files, life: 10 * time.Hour}
	k.Authority = y
	write(t, k.Settings.Token, "one\n")
	write(t, k.Settings.Trust, string(y.ca.CertPEM()))
	return k, y
}

func write(t *testing.T, path, body string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(body), 0o600))
}

func TestANodeEnrolsAndRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, y := newKeeper(t)
		require.NoError(t, k.Ensure(t.Context()))
		require.Equal(t, []string{"enrol one"}, y.wasAsked())
		require.NoError(t, k.Ensure(t.Context()))
		require.Len(t, y.wasAsked(), 1, "what is good is not asked for again")

		go func() { _ = k.Keep(t.Context()) }()
		time.Sleep(8 * time.Hour)
		synctest.Wait()
		require.Len(t, y.wasAsked(), 1)
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		require.Equal(t, []string{"enrol one", "renew"}, y.wasAsked(), "after typha's time, less up to a tenth")

		y.become(fmt.Errorf("%w: nobody listens", client.ErrUnavailable), nil)
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		write(t, k.Settings.Token, "two") // kubelet has brought another one meanwhile
		y.become(nil, client.ErrDenied)
		time.Sleep(look)
		synctest.Wait()
		require.Equal(t, []string{"renew", "enrol two"}, y.wasAsked(), "what is refused by certificate may be had by token")
	})
}

// A certificate that is there is judged by the CA of now.
func TestWhatIsThereIsJudged(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*testing.T, *Keeper, *typha)
		asked  []string
	}{
		"good":     {func(*testing.T, *Keeper, *typha) {}, nil},
		"no file":  {func(t *testing.T, k *Keeper, _ *typha) { require.NoError(t, os.Remove(k.Files.Cert)) }, []string{"enrol one"}},
		"no PEM":   {func(t *testing.T, k *Keeper, _ *typha) { write(t, k.Files.Cert, "nonsense") }, []string{"enrol one"}},
		"another":  {func(_ *testing.T, _ *Keeper, y *typha) { y.sign("n2") }, []string{"enrol one"}},
		"ended":    {func(*testing.T, *Keeper, *typha) { time.Sleep(11 * 24 * time.Hour) }, []string{"enrol one"}},
		"is due":   {func(*testing.T, *Keeper, *typha) { time.Sleep(9 * 24 * time.Hour) }, []string{"renew"}},
		"other CA": {func(t *testing.T, k *Keeper, _ *typha) { write(t, k.Settings.Trust, string(newCA(t).CertPEM())) }, []string{"enrol one"}},
		"two CAs": {func(t *testing.T, k *Keeper, y *typha) {
			write(t, k.Settings.Trust, string(newCA(t).CertPEM())+string(y.ca.CertPEM()))
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, y := newKeeper(t)
				y.sign("n1")
				c.change(t, k, y)
				y.become(nil, nil)
				_, _ = k.refresh(t.Context())
				require.Equal(t, c.asked, y.wasAsked())
			})
		})
	}
}

// While the CA changes, nodes trust both from their next connection on, whatever becomes of their own certificate.
func TestTheCAIsFollowed(t *testing.T) {
	k, y := newKeeper(t)
	require.NoError(t, k.Ensure(t.Context()))
	both := string(newCA(t).CertPEM()) + string(y.ca.CertPEM())
	write(t, k.Settings.Trust, both)
	usable, err := k.refresh(t.Context())
	require.NoError(t, err)
	require.True(t, usable)
	have, err := os.ReadFile(k.Files.CA)
	require.NoError(t, err)
	require.Equal(t, both, string(have))
}

// What needs somebody's help ends the start; what time heals does not, and a certificate that could only not be renewed will do.
func TestTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*testing.T, *Keeper, *typha)
		says   []string
	}{
		"refused": {func(_ *testing.T, _ *Keeper, y *typha) {
			y.become(fmt.Errorf("%w: bound to node n2", client.ErrDenied), nil)
		}, []string{"certificate of node n1: enrol (there is none): ", "bound to node n2"}},
		"no token": {func(t *testing.T, k *Keeper, _ *typha) { require.NoError(t, os.Remove(k.Settings.Token)) }, []string{"neither a certificate", "nor a token", "--enroll-token"}},
		"empty":    {func(t *testing.T, k *Keeper, _ *typha) { write(t, k.Settings.Token, "\n") }, []string{"token ", " is empty"}},
		"no CA":    {func(t *testing.T, k *Keeper, _ *typha) { require.NoError(t, os.Remove(k.Settings.Trust)) }, []string{"CA certificate: ", "mount the ConfigMap", "--enroll-ca"}},
		"bad CA":   {func(t *testing.T, k *Keeper, _ *typha) { write(t, k.Settings.Trust, "nonsense") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			k, y := newKeeper(t)
			c.change(t, k, y)
			err := k.Ensure(t.Context())
			for _, text := range c.says {
				require.ErrorContains(t, err, text)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		k, y := newKeeper(t)
		y.become(fmt.Errorf("%w: nobody listens", client.ErrUnavailable), nil)
		done := make(chan error)
		go func() { done <- k.Ensure(t.Context()) }()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Greater(t, len(y.wasAsked()), 10)
		y.become(nil, nil)
		require.NoError(t, <-done)

		y.become(client.ErrUnavailable, nil)
		time.Sleep(9 * 24 * time.Hour)
		require.NoError(t, k.Ensure(t.Context()), "due, and still good")
		time.Sleep(2 * 24 * time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, k.Ensure(ctx), client.ErrUnavailable)
	})
}

// A join token is shown where there is no Kubernetes; without any token certificates are somebody else's.
func TestOtherProofs(t *testing.T) {
	k, y := newKeeper(t)
	k.Settings.JoinToken = k.Settings.Token + ".join"
	write(t, k.Settings.JoinToken, "joined")
	require.NoError(t, os.Rename(k.Settings.Trust, k.Files.CA), "the CA is where the node has its files")
	require.NoError(t, k.Ensure(t.Context()))
	require.Equal(t, []string{"enrol joined"}, y.wasAsked())

	k, y = newKeeper(t)
	require.NoError(t, os.Remove(k.Settings.Token))
	y.sign("n1")
	require.NoError(t, k.Ensure(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, k.Keep(ctx))
	require.Empty(t, y.wasAsked())
}

func TestJudge(t *testing.T) {
	ca := newCA(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.CertPEM())
	pair, err := ca.Issue(pki.Operator("o"), time.Now())
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "cert")
	write(t, path, string(pair.Cert))
	cert, err := (&Keeper{Files: rpc.Files{Cert: path}}).read()
	require.NoError(t, err)
	require.ErrorIs(t, judge(cert, pool, "o", time.Now()), errOther)
	require.True(t, strings.Contains(judge(cert, pool, "o", time.Now()).Error(), "operator/o"))
	require.WithinDuration(t, time.Now().Add(160*time.Hour), renewal(cert), time.Hour)
}
