// Package embedded is an etcd inside this process, with its data in a directory: the datastore of a single host or a
// very small cluster. It is a single member and a real etcd: other processes reach it at its address with any etcd
// client, and its data directory can be opened by etcd's own tools.
//
// It owns the directory (one process at a time, guarded by a lock), the listener and the server's life. It refuses
// everything the etcd backend already does: the Client it hands out is that one.
//
// Every write is on disk before it is acknowledged, so killing the process loses nothing. Nothing is logged but what
// the server dies of.
package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/etcd"
)

// memberName is the name of the only member. It is part of the data on disk.
const memberName = "muslin"

// Config says where the data is and where to listen.
type Config struct {
	Dir    string // data directory; made if missing, with access for its owner only
	Listen string // host:port for clients; "" means a free port of 127.0.0.1

	// With a certificate the listener speaks TLS only. With a CA too, clients must show a certificate signed by it. The
	// client made here shows the same certificate, so it must be good for both uses and for the host of Listen.
	CertFile, KeyFile, CAFile string

	History time.Duration // how long old revisions are kept for watches to resume from; 0 means 5 min
	Quota   int64         // largest size of the data in bytes; 0 means etcd's own default, 2 GiB

	StartTimeout time.Duration // 0 means 30 s
	Logger       *slog.Logger  // nil means slog.Default
}

// Server is a running embedded etcd.
type Server struct {
	cfg      Config
	etcd     *embed.Etcd
	lock     *os.File
	endpoint string
	closing  sync.Once
}

// Start opens the directory, starts the server and waits until it serves. Someone else using the directory, a port in
// use, or an unusable certificate is one clear error, and leaves nothing behind.
func Start(ctx context.Context, cfg Config) (_ *Server, err error) {
	if cfg.Dir == "" {
		return nil, errors.New("the embedded datastore has no directory; say where its data is to be kept")
	}
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if err := checkTLS(cfg); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg}
	if s.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	conf, err := cfg.etcd()
	if err != nil {
		return nil, err
	}
	if s.etcd, err = embed.StartEtcd(conf); err != nil {
		return nil, fmt.Errorf("embedded datastore in %s, listening on %s: %w", cfg.Dir, cfg.Listen, err)
	}
	s.endpoint = conf.ListenClientUrls[0].Scheme + "://" + reachable(s.etcd.Clients[0].Addr().String())

	limit := time.NewTimer(cfg.StartTimeout)
	defer limit.Stop()
	select {
	case <-s.etcd.Server.ReadyNotify():
		return s, nil
	case err = <-s.etcd.Err():
	case <-s.etcd.Server.StopNotify():
		err = errors.New("it stopped while starting")
	case <-limit.C:
		err = fmt.Errorf("it is not ready after %v; is the disk very slow or full?", cfg.StartTimeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.etcd.Close()
	return nil, fmt.Errorf("embedded datastore in %s: %w", cfg.Dir, err)
}

// checkTLS finds bad certificate settings before anything is started.
func checkTLS(cfg Config) error {
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		return errors.New("the embedded datastore needs both a certificate and its key, or neither")
	}
	if cfg.CAFile != "" {
		if cfg.CertFile == "" {
			return errors.New("the embedded datastore can ask clients for certificates only if it has one; give a certificate and its key too")
		}
		if _, err := os.Stat(cfg.CAFile); err != nil {
			return fmt.Errorf("CA certificate of the embedded datastore: %w", err)
		}
	}
	if cfg.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile); err != nil {
			return fmt.Errorf("certificate of the embedded datastore: %w", err)
		}
	}
	return nil
}

// etcd returns the settings of the server.
func (cfg Config) etcd() (*embed.Config, error) {
	if _, _, err := net.SplitHostPort(cfg.Listen); err != nil {
		return nil, fmt.Errorf("address %q of the embedded datastore is not of the form host:port: %w", cfg.Listen, err)
	}
	conf := embed.NewConfig()
	conf.Name = memberName
	conf.Dir = filepath.Join(cfg.Dir, "etcd")
	conf.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration // else each request is written out to be warned of
	conf.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newLogger(cfg.Logger))

	client := url.URL{Scheme: "http", Host: cfg.Listen}
	if cfg.CertFile != "" {
		client.Scheme = "https"
		conf.ClientTLSInfo = transport.TLSInfo{
			CertFile: cfg.CertFile, KeyFile: cfg.KeyFile,
			TrustedCAFile: cfg.CAFile, ClientCertAuth: cfg.CAFile != "",
		}
	}
	conf.ListenClientUrls, conf.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}

	// A single member talks to no peers, so there is no peer listener. The address is only an entry in its own records.
	peer := url.URL{Scheme: "http", Host: "localhost:2380"}
	conf.ListenPeerUrls, conf.AdvertisePeerUrls = nil, []url.URL{peer}
	conf.InitialCluster = memberName + "=" + peer.String()
	// Read only when the directory is new: it makes the cluster id, by which clients tell one datastore from another.
	conf.InitialClusterToken = uuid.NewString()

	conf.TickMs, conf.ElectionMs = 20, 100 // alone, it elects itself within a few ticks
	conf.AutoCompactionMode = embed.CompactorModePeriodic
	conf.AutoCompactionRetention = historyOf(cfg).String()
	conf.QuotaBackendBytes = cfg.Quota
	conf.SnapshotCount = 5000
	conf.MaxWalFiles, conf.MaxSnapFiles = 2, 2
	conf.WatchProgressNotifyInterval = 10 * time.Second
	conf.EnableGRPCGateway = false
	conf.StrictReconfigCheck = false
	return conf, nil
}

func historyOf(cfg Config) time.Duration {
	if cfg.History == 0 {
		return 5 * time.Minute
	}
	return cfg.History
}

// reachable is the address at which a listener's own host reaches it: loopback, if it listens on all addresses.
func reachable(listener string) string {
	addr, err := netip.ParseAddrPort(listener)
	if err != nil || !addr.Addr().IsUnspecified() {
		return listener
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if addr.Addr().Is6() {
		loopback = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(loopback, addr.Port()).String()
}

// Endpoint is the URL at which the server can be reached from this host, as for ETCD_ENDPOINTS.
func (s *Server) Endpoint() string { return s.endpoint }

// Client returns a new client of this server. Close it before the server.
func (s *Server) Client(ctx context.Context) (*etcd.Client, error) {
	return etcd.New(ctx, etcd.Config{
		Endpoints: []string{s.endpoint},
		CertFile:  s.cfg.CertFile, KeyFile: s.cfg.KeyFile, CAFile: s.cfg.CAFile,
		Logger: s.cfg.Logger,
	})
}

// Done is closed when the server has stopped, by Close or because it failed.
func (s *Server) Done() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Close stops the server, which writes out what it holds, and gives the directory free. Closing again does nothing.
func (s *Server) Close() error {
	var err error
	s.closing.Do(func() {
		s.etcd.Close()
		if err = s.lock.Close(); err != nil {
			err = fmt.Errorf("lock of the embedded datastore: %w", err)
		}
	})
	return err
}

// Open starts a server and returns a client that owns it: closing the client stops the server.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	s, err := Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	c, err := s.Client(ctx)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Client{Client: c, server: s}, nil
}

// Client is the etcd backend together with the server it talks to. It implements datastore.Client.
type Client struct {
	*etcd.Client
	server *Server
}

var _ datastore.Client = (*Client)(nil)

// Endpoint is the URL at which other processes can reach the server.
func (c *Client) Endpoint() string { return c.server.Endpoint() }

// Close ends the client's watches, then stops the server.
func (c *Client) Close() error { return errors.Join(c.Client.Close(), c.server.Close()) }
