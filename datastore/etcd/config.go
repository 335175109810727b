package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Config says how to reach etcd. Endpoints or DiscoverySRV must be given.
type Config struct {
	Endpoints    []string // URLs as etcd takes them: "https://10.0.0.1:2379"; without a scheme http is meant
	DiscoverySRV string   // domain whose _etcd-client-ssl._tcp and _etcd-client._tcp records list the endpoints

	Username, Password        string      // of an etcd user; both empty without etcd authentication
	CertFile, KeyFile, CAFile string      // PEM files; certificate and key are read again at each handshake
	TLS                       *tls.Config // used instead of the three files if set

	DialTimeout   time.Duration // to get a connection or a token; 0 means 3 s
	OpTimeout     time.Duration // of one read, write or list page; 0 means 10 s
	BookmarkEvery time.Duration // how often idle watches are told the revision; 0 means 10 s, negative never
	PageSize      int64         // objects per list request; 0 means 1000

	Logger *slog.Logger // for what a caller cannot be told, as stored values that no longer decode; nil means slog.Default
}

func (c Config) withDefaults() Config {
	c.DialTimeout = cmp.Or(c.DialTimeout, 3*time.Second)
	c.OpTimeout = cmp.Or(c.OpTimeout, 10*time.Second)
	c.BookmarkEvery = cmp.Or(c.BookmarkEvery, 10*time.Second)
	c.PageSize = cmp.Or(c.PageSize, 1000)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	return c
}

// endpoints returns the normalised endpoint URLs: from DiscoverySRV if that is set, else from Endpoints.
func (c Config) endpoints(ctx context.Context) ([]string, error) {
	raw := c.Endpoints
	if c.DiscoverySRV != "" {
		var err error
		if raw, err = discover(ctx, c.DiscoverySRV); err != nil {
			return nil, err
		}
	}
	var eps []string
	schemes := map[string]bool{}
	for _, e := range raw {
		e = strings.TrimSpace(e)
		if e == "" {
			continue
		}
		if !strings.Contains(e, "://") {
			e = "http://" + e
		}
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("etcd endpoint %q is not a URL of the form http://host:port or https://host:port; correct ETCD_ENDPOINTS", e)
		}
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), "2379")
		}
		schemes[u.Scheme] = true
		eps = append(eps, u.Scheme+"://"+u.Host)
	}
	switch {
	case len(eps) == 0:
		return nil, errors.New("no etcd endpoint is given; set ETCD_ENDPOINTS, for example https://10.0.0.1:2379")
	case len(schemes) > 1:
		return nil, fmt.Errorf("etcd endpoints %s mix http and https; use one of the two for all", strings.Join(eps, ","))
	}
	return eps, nil
}

// discover looks the endpoints up in DNS. Servers with TLS are preferred: plain ones are taken only if there is no other.
func discover(ctx context.Context, domain string) ([]string, error) {
	var lookupErr error
	for _, s := range []struct{ service, scheme string }{{"etcd-client-ssl", "https"}, {"etcd-client", "http"}} {
		_, records, err := net.DefaultResolver.LookupSRV(ctx, s.service, "tcp", domain)
		if err != nil {
			lookupErr = err
			continue
		}
		var eps []string
		for _, r := range records {
			host := net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))
			eps = append(eps, s.scheme+"://"+host)
		}
		if len(eps) > 0 {
			return eps, nil
		}
	}
	return nil, fmt.Errorf("no etcd endpoint is found in DNS under %q (ETCD_DISCOVERY_SRV): %w", domain, lookupErr)
}

// tls returns the client's TLS settings, nil if nothing asks for any.
func (c Config) tls() (*tls.Config, error) {
	if c.TLS != nil {
		return c.TLS, nil
	}
	if c.CertFile == "" && c.KeyFile == "" && c.CAFile == "" {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd CA certificate (ETCD_CA_CERT_FILE): %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd CA certificate (ETCD_CA_CERT_FILE): %s holds no PEM certificate", c.CAFile)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("etcd client certificate: ETCD_CERT_FILE and ETCD_KEY_FILE must be set both or not at all")
	}
	if c.CertFile == "" {
		return conf, nil
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("etcd client certificate (ETCD_CERT_FILE, ETCD_KEY_FILE): %w", err)
		}
		return &cert, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	// Read at each handshake, so that a renewed certificate is taken without a restart.
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return conf, nil
}
