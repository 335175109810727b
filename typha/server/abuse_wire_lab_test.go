//go:build lab

package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/integration/lab/pki"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// visitor is one who connects by hand, from an address of its own.
type visitor struct {
	t     testing.TB
	world *world
	to    string
	from  string
	name  string
}

// raw connects.
func (v *visitor) raw() net.Conn {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(v.from), 0))}
	c, err := d.DialContext(v.t.Context(), "tcp", v.to)
	require.NoError(v.t, err)
	v.t.Cleanup(func() { c.Close() })
	require.NoError(v.t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// config is for a pair; nil for none.
func (v *visitor) config(pair *pki.Pair) *tls.Config {
	c := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12} // it is the server who is tested
	if pair != nil {
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		require.NoError(v.t, err)
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil } // wanted or not
	}
	return c
}

func (v *visitor) issue(ca *pki.CA, now time.Time) *pki.Pair {
	pair, err := ca.Issue(pki.Node(v.name), now)
	require.NoError(v.t, err)
	return &pair
}

// hang waits for the server to hang up, and tells how it did.
func hang(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	if err == nil {
		err = io.EOF
	}
	return err
}

// shake makes a handshake that is to fail: with TLS 1.3 the client is told by its first read.
func (v *visitor) shake(config *tls.Config) error {
	c := tls.Client(v.raw(), config)
	if err := c.Handshake(); err != nil {
		return err
	}
	return hang(c)
}

// framer speaks HTTP/2 with a good certificate.
func (v *visitor) framer() (net.Conn, *http2.Framer) {
	c := tls.Client(v.raw(), v.config(v.issue(v.world.ca, time.Now())))
	require.NoError(v.t, c.Handshake())
	_, err := c.Write([]byte(http2.ClientPreface))
	require.NoError(v.t, err)
	f := http2.NewFramer(c, c)
	require.NoError(v.t, f.WriteSettings())
	return c, f
}

// headers begin a call.
func (v *visitor) headers(f *http2.Framer, stream uint32, method string, ends bool, more ...string) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	all := append([]string{":method", "POST", ":scheme", "https", ":path", method, ":authority", "typha", "content-type", "application/grpc", "te", "trailers"}, more...)
	for i := 0; i < len(all); i += 2 {
		require.NoError(v.t, e.WriteField(hpack.HeaderField{Name: all[i], Value: all[i+1]}))
	}
	for first := true; first || b.Len() > 0; first = false {
		part := b.Next(16 << 10)
		if first {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndStream: ends, EndHeaders: b.Len() == 0}) // the server may have hung up: the outcome tells
			continue
		}
		_ = f.WriteContinuation(stream, b.Len() == 0, part)
	}
}

// outcome reads frames until the server ends the stream or the connection, and tells how.
func outcome(f *http2.Framer) string {
	d := hpack.NewDecoder(4096, nil)
	var fields []string
	d.SetEmitFunc(func(h hpack.HeaderField) { fields = append(fields, h.Name+"="+h.Value) })
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch x := frame.(type) {
		case *http2.RSTStreamFrame:
			return x.ErrCode.String()
		case *http2.GoAwayFrame:
			return x.ErrCode.String()
		case *http2.HeadersFrame:
			_, _ = d.Write(x.HeaderBlockFragment())
			if x.StreamEnded() {
				return strings.Join(fields, " ")
			}
		}
	}
}

const syncPath = typhav1.SyncService_Sync_FullMethodName

// TestAbuseOfTheConnectionIsRefusedCountedAndLoggedOnce goes through what comes before any call, or beside it.
func TestAbuseOfTheConnectionIsRefusedCountedAndLoggedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	log := &refusalLog{}
	r := w.replica(func(c *server.Config) { c.Log = slog.New(log) })
	r.put("b", 1, policy("a", "1"))
	b := w.follow("b", []string{r.address})
	b.first(1)
	other, err := pki.NewCA("other", time.Now())
	require.NoError(t, err)
	for i, c := range []struct {
		name   string
		do     func(v *visitor) string
		says   string
		reason string
		byName bool // the client is known
	}{
		{name: "a certificate of another CA", do: func(v *visitor) string { return v.shake(v.config(v.issue(other, time.Now()))).Error() }, says: "unknown certificate authority", reason: "handshake"},
		{name: "a certificate that has ended", do: func(v *visitor) string {
			return v.shake(v.config(v.issue(w.ca, time.Now().Add(-2*pki.Lifetime)))).Error()
		}, says: "expired certificate", reason: "handshake"},
		{name: "a certificate of the future", do: func(v *visitor) string {
			return v.shake(v.config(v.issue(w.ca, time.Now().Add(pki.Lifetime)))).Error()
		}, says: "expired certificate", reason: "handshake"},
		{name: "no certificate", do: func(v *visitor) string { return v.shake(v.config(nil)).Error() }, says: "certificate required", reason: "handshake"},
		{name: "TLS of yesterday", do: func(v *visitor) string {
			c := v.config(v.issue(w.ca, time.Now()))
			c.MaxVersion = tls.VersionTLS12
			return v.shake(c).Error()
		}, says: "protocol version not supported", reason: "handshake"},
		{name: "no TLS", do: func(v *visitor) string {
			c := v.raw()
			_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: typha\r\n\r\n"))
			return hang(c).Error()
		}, reason: "handshake"},
		{name: "noise", do: func(v *visitor) string {
			c := v.raw()
			_, _ = c.Write(bytes.Repeat([]byte{0xa5}, 4096))
			return hang(c).Error()
		}, reason: "handshake"},
		{name: "half a handshake", do: func(v *visitor) string {
			c := v.raw()
			_, _ = c.Write([]byte{0x16, 3, 1, 0x7f, 0xff, 1, 0, 0x7f}) // a hello of 32 KiB that does not come
			_ = c.(*net.TCPConn).CloseWrite()
			return hang(c).Error()
		}, reason: "handshake"},
		{name: "no HTTP/2", do: func(v *visitor) string {
			c := tls.Client(v.raw(), v.config(v.issue(w.ca, time.Now())))
			require.NoError(v.t, c.Handshake())
			_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: typha and some more\r\n\r\n"))
			return hang(c).Error()
		}, reason: "protocol", byName: true},
		{name: "noise after the preface", do: func(v *visitor) string {
			c, f := v.framer()
			_, _ = c.Write(bytes.Repeat([]byte{0xa5}, 4096))
			return outcome(f)
		}, says: "closed", reason: "protocol", byName: true},
		{name: "a frame of sixteen megabytes", do: func(v *visitor) string {
			c, f := v.framer()
			_, _ = c.Write([]byte{0xff, 0xff, 0xff, byte(http2.FrameData), 0, 0, 0, 0, 1})
			_, _ = c.Write(make([]byte, 1<<16))
			return outcome(f)
		}, says: "closed", reason: "protocol", byName: true},
		{name: "a stream of the server's numbers", do: func(v *visitor) string {
			_, f := v.framer()
			v.headers(f, 2, syncPath, false)
			return outcome(f)
		}, says: "PROTOCOL_ERROR", reason: "protocol", byName: true},
		{name: "seventy kilobytes of metadata", do: func(v *visitor) string {
			_, f := v.framer()
			v.headers(f, 1, syncPath, false, "x-some", strings.Repeat("x", 35<<10), "x-more", strings.Repeat("y", 35<<10))
			return outcome(f)
		}, says: "FRAME_SIZE_ERROR", reason: "oversized", byName: true},
		{name: "a megabyte of metadata", do: func(v *visitor) string {
			_, f := v.framer()
			v.headers(f, 1, syncPath, false, "x-much", strings.Repeat("\x01", 1<<20))
			return outcome(f)
		}, says: "closed", reason: "protocol", byName: true},
		{name: "more calls on a connection than it may have", do: func(v *visitor) string {
			_, f := v.framer()
			for i := range uint32(600) { // whose requests do not come
				v.headers(f, 2*i+1, register1, false)
			}
			return outcome(f)
		}, says: "REFUSED_STREAM", reason: "limit", byName: true},
		{name: "a message that is longer than it says", do: func(v *visitor) string {
			_, f := v.framer()
			v.headers(f, 1, register1, false)
			require.NoError(v.t, f.WriteData(1, true, []byte{0, 0, 0, 0, 200, 1, 2}))
			return outcome(f)
		}, says: "grpc-status=13", reason: "garbled", byName: true},
		{name: "a message of four gigabytes", do: func(v *visitor) string {
			_, f := v.framer()
			v.headers(f, 1, register1, false)
			require.NoError(v.t, f.WriteData(1, false, []byte{0, 0xff, 0xff, 0xff, 0xff, 1, 2}))
			return outcome(f)
		}, says: "grpc-status=8", reason: "oversized", byName: true},
		{name: "compressed by what nobody has", do: func(v *visitor) string {
			_, f := v.framer()
			v.headers(f, 1, register1, false, "grpc-encoding", "brotli")
			return outcome(f)
		}, says: "grpc-status=12", reason: "unknown", byName: true},
		{name: "pings without end", do: func(v *visitor) string {
			_, f := v.framer()
			for range 100 {
				if f.WritePing(false, [8]byte{}) != nil {
					break
				}
			}
			return outcome(f)
		}, says: "ENHANCE_YOUR_CALM", reason: "limit", byName: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := &visitor{t: t, world: w, to: r.address, from: fmt.Sprintf("127.0.2.%d", i+1), name: fmt.Sprintf("v%d", i)}
			before := refused(t, r, c.reason)
			for range 2 {
				assert.Contains(t, c.do(v), c.says)
			}
			eventually(t, "both are counted", func() bool { return refused(t, r, c.reason)-before >= 2 })
			from := v.from
			if c.byName {
				from = "node/" + v.name
			}
			eventually(t, "it is logged", func() bool { return log.count(c.reason+" "+from) > 0 })
			assert.Equal(t, 1, log.count(c.reason+" "+from), "%v", log.lines)
		})
	}
	probe, err := net.Dial("tcp", r.address)
	require.NoError(t, err)
	probe.Close() // as the probes of load balancers do
	r.put("b", 2, policy("a", "2"))
	assert.Equal(t, "+np/a=2 @2 in sync", text(b.next()), "the honest client's stream has lived through all this")
	assert.Zero(t, log.count("handshake 127.0.0.1"))
}

// TestTenThousandStreams are opened by one client: it has sixteen, is refused the others, and no other client is.
func TestTenThousandStreams(t *testing.T) {
	t.Parallel()
	const streams, most = 10000, 16
	w := newWorld(t)
	log := &refusalLog{}
	r := w.replica(func(c *server.Config) { c.Log = slog.New(log) })
	r.put("b", 1, policy("a", "1"))
	b := w.follow("b", []string{r.address})
	b.first(1)
	conn := w.dial(pki.Node("evil"), r.address)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var running sync.WaitGroup
	var limited, other atomic.Int64
	for range streams {
		running.Go(func() {
			s, err := typhav1.NewSyncServiceClient(conn).Sync(ctx)
			if err == nil {
				_, err = s.Recv() // which never comes without a hello
			}
			switch {
			case status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "node/evil has 16 streams open"):
				limited.Add(1)
			case ctx.Err() == nil:
				other.Add(1)
			}
		})
	}
	eventually(t, "all others are refused", func() bool { return limited.Load() == streams-most })
	r.put("b", 2, policy("a", "2"))
	assert.Equal(t, "+np/a=2 @2 in sync", text(b.next()))
	c := w.follow("c", []string{r.address})
	c.next()
	assert.InDelta(t, streams-most, refused(t, r, "limit"), 0)
	assert.Equal(t, 1, log.count("limit node/evil"))
	assert.Zero(t, other.Load())
	cancel()
	running.Wait()
	again := w.stream("evil", r.address)
	eventually(t, "there is room again", func() bool {
		again = w.stream("evil", r.address)
		again.hello(&typhav1.Hello{})
		_, err := again.Recv()
		return err == nil
	})
}

// TestConnectionsOfOneClientAreBounded: what is beyond is closed, and another client has its own.
func TestConnectionsOfOneClientAreBounded(t *testing.T) {
	t.Parallel()
	const most = 16
	w := newWorld(t)
	log := &refusalLog{}
	r := w.replica(func(c *server.Config) { c.Log = slog.New(log) })
	r.put("b", 1)
	v := &visitor{t: t, world: w, to: r.address, from: "127.0.0.1", name: "evil"}
	pair := v.issue(w.ca, time.Now())
	var held []net.Conn
	for range most {
		c := tls.Client(v.raw(), v.config(pair))
		require.NoError(t, c.Handshake())
		_, err := c.Read(make([]byte, 1)) // its settings: it is let in
		require.NoError(t, err)
		held = append(held, c)
	}
	for range 3 {
		require.Error(t, v.shake(v.config(pair)))
	}
	eventually(t, "they are counted", func() bool { return refused(t, r, "limit") >= 3 })
	assert.InDelta(t, 3, refused(t, r, "limit"), 0)
	assert.Equal(t, 1, log.count("limit node/evil"))
	w.follow("b", []string{r.address}).next()
	require.NoError(t, held[0].Close())
	eventually(t, "there is room again", func() bool {
		c := tls.Client(v.raw(), v.config(pair))
		if c.Handshake() != nil {
			return false
		}
		_, err := c.Read(make([]byte, 1))
		return err == nil
	})
}

// TestTenThousandUnfinishedHandshakes: the oldest are dropped, and all others get in.
func TestTenThousandUnfinishedHandshakes(t *testing.T) {
	t.Parallel()
	const shakes, most, held = 10000, 2048, 3000
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.Greater(t, limit.Cur, uint64(held+most+1000), "this test needs more open files; raise the limit (ulimit -Hn)")
	w := newWorld(t)
	log := &refusalLog{}
	r := w.replica(func(c *server.Config) { c.Log = slog.New(log) })
	r.put("b", 1, policy("a", "1"))
	b := w.follow("b", []string{r.address})
	b.first(1)
	var mu sync.Mutex
	var open []net.Conn
	var dialers sync.WaitGroup
	for range 8 {
		dialers.Go(func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 3, 1)}}
			for range shakes / 8 {
				c, err := d.Dial("tcp", r.address)
				if err != nil {
					t.Errorf("the server does not accept: %v", err)
					return
				}
				mu.Lock()
				open = append(open, c)
				// The server drops the oldest. One that went before would be none of those: it is waited for, and so is a server that is
				// slower to accept than these are to come.
				var early error
				if len(open) > held {
					_ = open[0].SetReadDeadline(time.Now().Add(patience))
					_, early = open[0].Read(make([]byte, 1))
					open[0].Close()
					open = open[1:]
				}
				mu.Unlock()
				if errors.Is(early, os.ErrDeadlineExceeded) {
					t.Errorf("the server keeps more than %d handshakes that do not end", held)
					return
				}
			}
		})
	}
	dialers.Wait()
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	least := float64(shakes + 1 - most)
	eventually(t, "what is too much is dropped", func() bool { return refused(t, r, "handshake") >= least })
	assert.Equal(t, 1, log.count("handshake 127.0.3.1"))
	r.put("b", 2, policy("a", "2"))
	assert.Equal(t, "+np/a=2 @2 in sync", text(b.next()), "who is in stays")
	assert.Equal(t, "@2 in sync", text(w.follow("c", []string{r.address}).next()), "who comes gets in")
}

// TestAClientThatNeverReadsHoldsNobodyUp, with all the streams that it may have, each with a view that fits into no window.
func TestAClientThatNeverReadsHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	var items []view.Item
	for i := range 3000 {
		items = append(items, policy(fmt.Sprint(i), strings.Repeat("x", 2048)))
	}
	r.put("evil", 1, items...)
	r.put("b", 1, policy("a", "1"))
	for range 16 {
		w.stream("evil", r.address).hello(&typhav1.Hello{})
	}
	eventually(t, "all are there", func() bool { return metric(t, r, "typha_clients") == 16 })
	b := w.follow("b", []string{r.address})
	b.first(1)
	for i := range uint64(50) {
		r.put("evil", 2*i+2, policy("0", fmt.Sprint(i)))
		r.put("b", 2*i+3, policy("a", fmt.Sprint(i+2)))
		for got := b.next(); got.Checkpoint["etcd"] < 2*i+3; {
			got = b.next()
		}
	}
	assert.LessOrEqual(t, metric(t, r, "typha_batches_sent_total"), 16.0+1+200, "what is not taken is not sent")
}

// TestAskingAgainForeverFillsNoMemory: what a client asks for again is bounded, whether or not it takes it.
func TestAskingAgainForeverFillsNoMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("evil", 1, policy("a", "1"))
	s := w.stream("evil", r.address)
	s.hello(&typhav1.Hello{})
	batch := s.chunk().GetBatch()
	again := &typhav1.Resend{Keys: list(5000, &typhav1.ItemKey{Kind: typhav1.ItemKind_ITEM_KIND_POLICY, Id: "np/a"})}
	s.say(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Resend{Resend: again}})
	whole := false
	for !whole { // it is started over with, in the place of five thousand items
		m, err := s.Recv()
		require.NoError(t, err)
		whole = m.GetWelcome() != nil && !m.GetWelcome().GetResumed()
	}
	assert.Len(t, s.chunk().GetItems(), 1)
	fail := &typhav1.SyncRequest{Request: &typhav1.SyncRequest_Ack{Ack: &typhav1.Ack{Received: batch, Failures: list(1000, &typhav1.Failure{Reason: strings.Repeat("why ", 1000)})}}}
	s.say(fail)
	s.say(fail)
	var clients []client.Follower
	operator := w.operator(r.address)
	eventually(t, "the failures are known", func() bool {
		var err error
		clients, err = operator.Followers(t.Context())
		return err == nil && len(clients) == 1 && len(clients[0].Failures) > 0
	})
	assert.Len(t, clients[0].Failures, 100)
	assert.LessOrEqual(t, len(clients[0].Failures[0]), 512)
}

// TestOneClientDoesNotStarveOthers: it calls as often as it can, by a thousand callers; another one's calls are all answered.
func TestOneClientDoesNotStarveOthers(t *testing.T) {
	t.Parallel()
	arena := newArena(t)
	conn := arena.dial(pki.Node("evil"), arena.address)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running sync.WaitGroup
	var refusals, answers atomic.Int64
	for range 1000 {
		running.Go(func() {
			for ctx.Err() == nil {
				_, err := typhav1.NewIpamServiceClient(conn).Reserve(ctx, &typhav1.ReserveRequest{Count4: 1, Pools4: []string{"nowhere"}, Owner: owner("net.evil")})
				switch {
				case status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "256 calls under way"):
					refusals.Add(1)
				case ctx.Err() == nil:
					answers.Add(1)
				}
			}
		})
	}
	eventually(t, "it is at full speed", func() bool { return answers.Load() > 100 })
	for i := range 10 {
		pod := reserve(t, arena.b, fmt.Sprintf("late%d", i))
		freed, err := arena.b.ReleaseHandle(t.Context(), fmt.Sprintf("net.late%d", i))
		require.NoError(t, err)
		require.Equal(t, []netip.Addr{pod}, freed)
	}
	cancel()
	running.Wait()
	t.Logf("one client was answered %d times and refused %d times meanwhile", answers.Load(), refusals.Load())
}
