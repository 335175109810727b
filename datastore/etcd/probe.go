package etcd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// probeTime bounds the search for the cause of a failure, which comes on top of the time limit of the request.
const probeTime = 2 * time.Second

// probe talks to one endpoint by hand and returns what is wrong with it in a few words, or "" if it looks alive. The gRPC
// client knows no more than that a deadline passed; this finds out why.
func (c *Client) probe(ctx context.Context, endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err.Error()
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return rootCause(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	if u.Scheme == "https" {
		conf := &tls.Config{MinVersion: tls.VersionTLS12}
		if c.tls != nil {
			conf = c.tls.Clone()
		}
		conf.ServerName = firstNonEmpty(conf.ServerName, u.Hostname())
		secure := tls.Client(conn, conf)
		err := secure.HandshakeContext(ctx)
		var notTLS tls.RecordHeaderError
		switch {
		case errors.Is(err, io.EOF) || errors.As(err, &notTLS):
			return "does not speak TLS; should the endpoint be http?"
		case err != nil:
			return "TLS: " + rootCause(err) + " (ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE)"
		}
		conn = secure
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/version", nil)
	if err != nil {
		return err.Error()
	}
	if err := req.Write(conn); err != nil {
		return rootCause(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	switch {
	case err != nil && u.Scheme == "https": // with TLS 1.3 a refused client certificate shows only now
		return "TLS: " + rootCause(err) + " (ETCD_CERT_FILE, ETCD_KEY_FILE)"
	case err != nil && ctx.Err() != nil:
		return "connected, but no answer"
	case err != nil:
		return "does not speak HTTP (" + rootCause(err) + "); should the endpoint be https?"
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusBadRequest && u.Scheme == "http" {
		return "speaks TLS; write the endpoint with https"
	}
	return ""
}

// rootCause returns the innermost text of a network error: "connection refused" rather than the whole chain.
func rootCause(err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return "host name " + dns.Name + " is not known"
	}
	var ne net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout() {
		return "no answer to the connection attempt"
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return strings.TrimPrefix(err.Error(), "tls: ")
		}
		err = next
	}
}

func firstNonEmpty(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
