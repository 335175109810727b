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

// check reads everything once, so that a missing file is an error of the start rather than of a connection.
func (f Files) check() error {
	if _, err := f.pool(); err != nil {
		return err
	}
	_, err := f.pair()
	return err
}

func (f Files) pool() (*x509.CertPool, error) {
	body, err := read("CA certificate", f.CA, "--ca")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(body) {
		return nil, fmt.Errorf("CA certificate %s holds no PEM certificate", f.CA)
	}
	return pool, nil
}

func (f Files) pair() (*tls.Certificate, error) {
	cert, err := read("certificate", f.Cert, "--cert")
	if err != nil {
		return nil, err
	}
	key, err := read("key", f.Key, "--key")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	return &pair, nil
}

// current is the pair if it has not ended: the server would refuse it when the client takes the handshake for done, and often
// nothing is heard of why.
func (f Files) current() (*tls.Certificate, error) {
	pair, err := f.pair()
	if err == nil && time.Now().After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate %s ended at %s; renew it, or see why calico-node does not", f.Cert, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
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
func ServerTLS(f Files) (*tls.Config, error) {
	if err := f.check(); err != nil {
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
func ClientTLS(f Files, serverName string) (*tls.Config, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName,
		InsecureSkipVerify:   true, // the standard check cannot reread the CA; VerifyConnection below makes the same check
		VerifyConnection:     func(s tls.ConnectionState) error { return verify(f, s) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return f.current() },
	}, nil
}

func verify(f Files, s tls.ConnectionState) error {
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
