#pragma once
// The watchdog's side channel: small UDP datagrams, which pass when MPI is stuck and need no connection
// for each rank. IPv4.
//
// Errors: kIo when there is no socket. What cannot be sent is lost, as any datagram may be.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ttt::dist {

struct Address {
  std::uint32_t host = 0;  // network byte order, as the port
  std::uint16_t port = 0;
};

class DatagramSocket {
 public:
  /// On a free port of every interface.
  DatagramSocket();
  DatagramSocket(const DatagramSocket&) = delete;
  DatagramSocket& operator=(const DatagramSocket&) = delete;
  ~DatagramSocket();

  /// Where others may reach it: every interface that is up, loopback included.
  [[nodiscard]] std::vector<Address> addresses() const;

  void send(std::span<const std::byte> message, Address to) const;
  /// Waits at most `seconds`. False without a datagram of exactly message.size() bytes.
  bool receive(std::span<std::byte> message, Address& from, double seconds) const;
  /// Makes a `receive` of another thread return now.
  void wake() const;

 private:
  [[nodiscard]] std::uint16_t port() const;

  int socket_ = -1;
};

}  // namespace ttt::dist
