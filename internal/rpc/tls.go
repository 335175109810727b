// Package rpc is our gRPC plumbing: mutual TLS with identities, unix sockets, keepalive, and dialling.
package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Files are the paths of PEM files. They are read anew for every connection, so that a rotated certificate is used by
// the next one without a restart.
type Files struct {
	CA, Cert, Key string
}

// reader reads files, and makes of them what they hold only when that is not what it was: a thousand connections at once cost it once.
type reader struct {
	Files
	pools made[*x509.CertPool]
	pairs made[*tls.Certificate]
}

// made is what the contents of files were made into last.
type made[T any] struct {
	mu    sync.Mutex // guards all below
	is    bool       // empty files are made into nothing
	of    string
	value T
}

// from returns what contents are made into.
func (m *made[T]) from(contents string, parse func() (T, error)) (T, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.is && m.of == contents {
		return m.value, nil
	}
	value, err := parse()
	if err == nil {
		m.is, m.of, m.value = true, contents, value
	}
	return value, err
}

// newReader reads everything once, so that a missing file is an error of the start rather than of a connection.
func newReader(f Files) (*reader, error) {
	r := &reader{Files: f}
	if _, err := r.pool(); err != nil {
		return nil, err
	}
	_, err := r.pair()
	return r, err
}

func (r *reader) pool() (*x509.CertPool, error) {
	body, err := read("CA certificate", r.CA, "--ca")
	if err != nil {
		return nil, err
	}
	return r.pools.from(string(body), func() (*x509.CertPool, error) {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(body) {
			return nil, fmt.Errorf("CA certificate %s holds no PEM certificate", r.CA)
		}
		return pool, nil
	})
}

func (r *reader) pair() (*tls.Certificate, error) {
	cert, err := read("certificate", r.Cert, "--cert")
	if err != nil {
		return nil, err
	}
	key, err := read("key", r.Key, "--key")
	if err != nil {
		return nil, err
	}
	return r.pairs.from(string(cert)+"\x00"+string(key), func() (*tls.Certificate, error) {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", r.Cert, r.Key, err)
		}
		return &pair, nil
	})
}

// current is the pair if it has not ended: the server would refuse it when the client takes the handshake for done, and often
// nothing is heard of why.
func (r *reader) current() (*tls.Certificate, error) {
	pair, err := r.pair()
	if err == nil && time.Now().After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate %s ended at %s; renew it, or see why calico-node does not", r.Cert, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return pair, err
}

// read reads a file, and tells what to do if that fails.
func read(what, path, flag string) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("missing %s: give its path by %s", what, flag)
	}
	body, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s: %w; run this as root, or let its user read the file", what, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w; give its path by %s", what, err, flag)
	}
	return body, nil
}

// ServerTLS asks every client for a certificate signed by the CA.
func ServerTLS(files Files) (*tls.Config, error) {
	f, err := newReader(files)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			pool, err := f.pool()
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
				// No client of ours resumes sessions, and small records for who waits for a page's first bytes are so many more
				// writes to who waits for a whole view.
				SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.pair() },
			}, nil
		},
	}, nil
}

// ClientTLS trusts servers signed by the CA whose certificate is for serverName.
func ClientTLS(files Files, serverName string) (*tls.Config, error) {
	f, err := newReader(files)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName,
		InsecureSkipVerify:   true, // the standard check cannot reread the CA; VerifyConnection below makes the same check
		VerifyConnection:     func(s tls.ConnectionState) error { return verify(f, s) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return f.current() },
	}, nil
}

func verify(f *reader, s tls.ConnectionState) error {
	pool, err := f.pool()
	if err != nil {
		return err
	}
	return Verify(pool, s)
}

// Verify is the check of a server's certificate that package crypto/tls makes by itself, for a config that sets
// InsecureSkipVerify to make it differently.
func Verify(pool *x509.CertPool, s tls.ConnectionState) error {
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, DNSName: s.ServerName})
	return err
}

// Identity is who a peer's certificate says it is: the URI SAN muslin://<role>/<name>.
type Identity struct {
	Role string // "node", "operator"
	Name string
}

// String is role/name.
func (i Identity) String() string { return i.Role + "/" + i.Name }

// IdentityScheme is the scheme of the URI SAN that carries an identity.
const IdentityScheme = "muslin"

// IdentityOf reads the identity from a certificate.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	for _, uri := range cert.URIs {
		name := strings.TrimPrefix(uri.Path, "/")
		if uri.Scheme == IdentityScheme && uri.Host != "" && name != "" {
			return Identity{Role: uri.Host, Name: name}, nil
		}
	}
	return Identity{}, fmt.Errorf("certificate %q has no URI name of the form %s://ROLE/NAME", cert.Subject.CommonName, IdentityScheme)
}

// Peer is the identity of the caller, from its verified certificate; an Unauthenticated status error if it has none.
func Peer(ctx context.Context) (Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, status.Error(codes.Unauthenticated, "the call came over no connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return Identity{}, status.Error(codes.Unauthenticated, "a client certificate is needed")
	}
	id, err := IdentityOf(info.State.PeerCertificates[0])
	if err != nil {
		return Identity{}, status.Error(codes.Unauthenticated, err.Error())
	}
	return id, nil
}
